# SPDX-License-Identifier: Apache-2.0
"""What a table, a model and its answers look like."""
