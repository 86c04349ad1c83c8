"""Files: tensors, JSON, videos, written whole or not at all; and a pool of worker processes."""
