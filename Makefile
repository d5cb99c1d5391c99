.PHONY: demo test quick setup

demo: setup
	.venv/bin/lora-service demo

test:
	scripts/test

quick:
	@scripts/setup --dev
	scripts/check -m "not slow"

setup:
	@scripts/setup
