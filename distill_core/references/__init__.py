"""RefBERT: students that also see the teacher's reading of the most similar other text (docs/refbert.md)."""
