"""What a pretrained model is trained further for: questions, statements, entailment, grounding."""
