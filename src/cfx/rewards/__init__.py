"""Rewards: crystals in, numbers out that fine-tuning makes larger."""
