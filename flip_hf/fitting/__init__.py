# SPDX-License-Identifier: Apache-2.0
"""Training rows -> counts -> vocabularies, buckets and statistics of a feature extractor."""
