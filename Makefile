# Thin: the work is done by cargo and by the scripts beside their subject.
TIER ?= all

.PHONY: test lint build rpm
test:
	tests/run-tiers $(TIER)

lint:
	tests/lint

# what the RPM ships: static binaries for EL 8, 9 and 10
TARGET := x86_64-unknown-linux-musl
build:
	tests/provide packages && tests/provide rust
	cargo build --release --target $(TARGET) -p nodeagent -p nodeagent-runtime
	cargo build --profile shim --target $(TARGET) -p nodeagent-shim
	mkdir -p target/bin
	ln -f target/$(TARGET)/release/agent target/$(TARGET)/release/nodeagent-runtime target/$(TARGET)/shim/nodeagent-shim target/bin/

rpm: build
	tests/provide packages image-build/rpm/packages.txt
	image-build/rpm/build

# programs of the test host: stand-ins for kubelet and kubeadm
.PHONY: standins image run shell stop
standins:
	tests/provide packages && tests/provide rust
	cargo build --release --target $(TARGET) -p nodeagent-standin

# the test host, ready to boot
image:
	tests/provide packages && tests/provide rust
	cargo run -q -p nodeagent-tests --bin nodeagent-testhost -- build

# a host becomes a node before your eyes; HOST=here makes one of the machine you are on (EL only, asks first)
run: $(if $(filter here,$(HOST)),run-here,run-testhost)

.PHONY: run-here run-testhost
run-testhost: build standins
	cargo build -q -p nodeagent-tests --bins
	target/debug/nodeagent-demo run $(if $(CI),--once)

run-here:
	tests/run/here

shell stop:
	target/debug/nodeagent-demo $@

# what pods, images and the agent cost, beside Debian's containerd (and skopeo, umoci) and shell commands in the same run; on a
# quiet machine
.PHONY: bench bench-images bench-agent
bench: build
	tests/provide packages tests/bench-packages.txt
	cargo build -q -p nodeagent-tests --bin nodeagent-bench
	NODEAGENT_BIN_DIR=$(CURDIR)/target/bin target/debug/nodeagent-bench
	NODEAGENT_BIN_DIR=$(CURDIR)/target/bin target/debug/nodeagent-bench --systemd
	tests/bench-images
	$(MAKE) bench-agent

bench-agent: build
	tests/provide packages tests/bench-packages.txt
	cargo build -q -p nodeagent-tests --bin nodeagent-bench-agent
	NODEAGENT_BIN_DIR=$(CURDIR)/target/bin target/debug/nodeagent-bench-agent

bench-images: build
	tests/provide packages tests/bench-packages.txt
	tests/bench-images
