# Thin: the work is done by cargo and by the scripts beside their subject.
TIER ?= all

.PHONY: test lint
test: lint
	tests/run-tiers $(TIER)

lint:
	tests/lint
