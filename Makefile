# Thin: the work is done by cargo and by the scripts beside their subject.
CARGO ?= cargo
TARGET := x86_64-unknown-linux-musl
TIER ?= all

.PHONY: test lint
test: lint
	$(CARGO) test --workspace

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
