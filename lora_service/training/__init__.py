"""Teaching: from pictures to one LoRA file, in two stages."""
