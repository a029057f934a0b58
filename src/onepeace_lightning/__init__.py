"""ONE-PEACE as PyTorch Lightning modules: vision, audio and language in one transformer."""
