# SPDX-License-Identifier: Apache-2.0
"""Files and tables -> splits -> encoded rows."""
