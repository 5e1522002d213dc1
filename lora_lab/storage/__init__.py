"""Bytes on disk: headers, lazy tensors, shards, guarded pickles, crash-safe writing. Knows no LoRA."""
