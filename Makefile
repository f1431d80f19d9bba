# Thin: the work is done by cargo and by the scripts beside their subject.
TIER ?= all

.PHONY: test lint build rpm
test: lint
	tests/run-tiers $(TIER)

lint:
	tests/lint

# what the RPM ships: static binaries for EL 8, 9 and 10
TARGET := x86_64-unknown-linux-musl
build:
	tests/provide packages && tests/provide rust
	cargo build --release --target $(TARGET) -p nodeagent -p nodeagent-runtime
	cargo build --profile shim --target $(TARGET) -p nodeagent-shim

rpm: build
	tests/provide packages image-build/rpm/packages.txt
	image-build/rpm/build
