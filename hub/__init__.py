"""Model card and push to the Hugging Face Hub."""
