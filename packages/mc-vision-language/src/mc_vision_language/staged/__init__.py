"""Stages in a row: experts, pre-alignment, joint training, instruction tuning; kept maps of frozen experts; arms of an ablation."""
