"""One recipe per corpus: raw files to shards and a manifest."""
