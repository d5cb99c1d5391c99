"""``python -m lora_service`` is the command ``lora-service``; launchers of several processes want a module."""

from lora_service.cli.main import main

if __name__ == "__main__":
    main()
