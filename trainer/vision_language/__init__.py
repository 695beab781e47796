"""Model families, chat formats and pictures: from a raw sample to what a model reads."""
