"""Sentences and what is made of them: sources, token ids, batches of pairs."""
