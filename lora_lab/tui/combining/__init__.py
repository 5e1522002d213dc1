"""The wizard that makes adapters: several combined, one resized, one extracted from a fine-tune."""
