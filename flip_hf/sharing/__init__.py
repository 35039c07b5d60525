# SPDX-License-Identifier: Apache-2.0
"""To the Hub, with a card."""
