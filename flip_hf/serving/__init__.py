# SPDX-License-Identifier: Apache-2.0
"""Raw rows -> click probabilities, reasons and rankings."""
