"""Drawing: from a prompt and LoRAs to picture files."""
