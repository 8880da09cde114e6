# The gates, each self-sufficient on a bare Debian machine: .ci/tool makes what is missing, once.
# Run any tool the same way: .ci/tool pytest tests/unit -k fields

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
TOOL := .ci/tool
SCRIPTS := .ci/env.sh .ci/setup .ci/tool .ci/steps .ci/run

.PHONY: help setup format check lint style ansible-lint types unit unit-nodes unit-controller unit-slow docs vm-page sanity sanity-main sanity-main-quick sanity-newest sanity-newest-quick units units-oldest tarball dist install lab \
	lab-host lab-down demo stories stories-all stories-site stories-others molecule bench soak test test-all clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' Makefile

setup: ## Install what the gates need (cached under $DROVER_CACHE, default ~/.cache/drover)
	@.ci/setup

check: style ## The quick gates: style, then ansible-lint, types and most of unit side by side
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target MOST='-m "not slow"' \
		unit-nodes ansible-lint unit-controller types

format: ## Rewrite the Python files as ruff wants them
	@source .ci/env.sh && .ci/setup && "$$VENV/bin/ruff" format . && "$$VENV/bin/ruff" check --fix .

lint: style ansible-lint ## style, and ansible-lint

style: ## ruff, yamllint, shellcheck, antsibull-changelog
	$(TOOL) ruff check .
	$(TOOL) ruff format --check .
	$(TOOL) yamllint --strict .
	$(TOOL) shellcheck $(SCRIPTS)
	$(TOOL) antsibull-changelog lint

ansible-lint: ## Playbooks, roles and examples, by the profile production
	$(TOOL) ansible-lint --nocolor

types: ## mypy on plugins, roles' programs and tests
	$(TOOL) mypy -p ansible_collections.drover.kvm

# Two runs, as ansible-test does: in a process that has loaded the controller's side, a module's warnings go elsewhere.
ON_NODES := tests/unit/plugins/modules tests/unit/plugins/module_utils

unit: unit-nodes unit-controller ## Unit tests with libvirt's test driver at hand; ARGS="-k name" narrows

# More workers than cores: these tests wait for real daemons most of their time. MOST leaves out those that compute for
# seconds (mark slow), which make test runs in unit-slow and units-oldest.
PYTEST_NODES = pytest -n 4 --dist worksteal $(MOST) $(ON_NODES) $(ARGS) || [ $$? = 5 ]
unit-nodes:
	$(TOOL) $(PYTEST_NODES)

unit-controller:
	$(TOOL) pytest -n 2 --dist worksteal $(MOST) tests/unit $(addprefix --ignore=,$(ON_NODES)) $(ARGS) || [ $$? = 5 ]

# Those of nodes are left to units-oldest, which runs them all, on another Python.
unit-slow: ## What make check leaves out of the controller's unit tests: they compute for seconds, or run playbooks
	@$(MAKE) --no-print-directory MOST='-m slow' unit-controller
	@# What make test does not run is at least read: the helpers of unit tests that it uses are where it looks for them.
	$(TOOL) pytest --collect-only -qq tests/benchmarks tests/soak >/dev/null

docs: ## antsibull-docs: every option, link and reference of the documentation
	$(TOOL) antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck --validate-collection-refs=all .

vm-page: ## Write the table of docs/vm.md again, from the records of the options
	$(TOOL) env PYTHONPATH=../../.. python tests/unit/vm_page.py "$(CURDIR)/docs/vm.md"

sanity: sanity-main sanity-newest ## ansible-test sanity on ansible-core 2.19 and on the newest

sanity-main:
	$(TOOL) ansible-test sanity --local

# For make test, as pylint and imports on five Pythons take long: ruff and mypy read the tests in make check, and what runs on nodes
# is imported by the unit tests on the oldest and the main Python and by the lab's nodes on theirs.
sanity-main-quick:
	$(TOOL) ansible-test sanity --local --exclude tests/ --skip-test import
	@source .ci/env.sh; for version in $$PYTHONS; do \
		if find_python "$$version" >/dev/null; then \
			exec $(TOOL) ansible-test sanity --local --exclude tests/ --test import --python "$$version"; fi; done

# For make test, too: pylint and pep8 see the same code by the same rules on ansible-core 2.19.
sanity-newest-quick: QUICK = --skip-test pylint --skip-test pep8 $(addprefix --python ,$(NEWEST_PYTHON))
NEWEST_PYTHON = $(shell source .ci/env.sh; "$$VENV_NEWEST/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
sanity-newest sanity-newest-quick:
	$(TOOL) --newest ansible-test sanity --local $(QUICK)

# With pytest itself: ansible-test begins a process for each test, with libvirt's and Open vSwitch's daemons of its own.
units-oldest: ## The unit tests of what runs on nodes on Python 3.9, their oldest; the lab's have 3.13, make check 3.11
	.ci/setup units
	@source .ci/env.sh; if find_python 3.9 >/dev/null; then \
		$(TOOL) --first "$$(unit_venv 3.9)/bin" env PYTHONPATH="$$NODE_CORE" $(PYTEST_NODES); \
	else echo "SKIPPED: no Python 3.9 here, so with the main one"; $(MAKE) --no-print-directory unit-nodes; fi

units: ## ansible-test units on every Python from 3.9 to 3.13 that is here
	.ci/setup units
	@source .ci/env.sh; for version in $$PYTHONS; do \
		if find_python "$$version" >/dev/null; then \
			$(TOOL) --first "$$(unit_venv "$$version")/bin" ansible-test units --local --python "$$version"; \
		else echo "SKIPPED: no Python $$version here"; fi; done

BUILD := $(CURDIR)/build
TARBALL := $(BUILD)/drover-kvm-$(shell awk '/^version:/ { print $$2 }' galaxy.yml).tar.gz
INSTALLED := env ANSIBLE_COLLECTIONS_PATH=$(BUILD)/collections

tarball:
	$(TOOL) ansible-galaxy collection build --force --output-path $(BUILD)

dist: tarball ## The release tarball, checked by galaxy-importer
	$(TOOL) env GALAXY_IMPORTER_CONFIG=.ci/galaxy-importer.cfg python -m galaxy_importer.main $(TARBALL)

install: tarball ## The tarball and what it depends on, installed into build/collections; reads every page from there
	@source .ci/env.sh; rm -rf $(BUILD)/collections; cp -r "$$DEPENDENCIES" $(BUILD)/collections
	$(TOOL) $(INSTALLED) ansible-galaxy collection install --offline -p $(BUILD)/collections $(TARBALL)
	$(TOOL) $(INSTALLED) ansible-galaxy collection verify --offline drover.kvm
	$(TOOL) $(INSTALLED) ansible-doc --metadata-dump drover.kvm >$(BUILD)/documentation.json

# The last line that make shows for a part that is not there yet.
if_any = @if compgen -G '$(1)' >/dev/null; then echo '$(2)'; $(2); else echo 'nothing to run: no $(1)'; fi

# Stories come from the checkout; the playbooks that they run are those of the installed collection.
STORIES := DROVER_COLLECTIONS=$(BUILD)/collections $(TOOL)
STORY_LAB := $${DROVER_LAB_NAME:-drover-test}

LAB := $(TOOL) $(INSTALLED) ansible-playbook -i localhost, drover.kvm.lab

lab: install ## The lab: servers, SAN and switches on this machine; ARGS="-e lab_name=second" for another one
	$(LAB) $(ARGS)

lab-down: install ## Take the lab away
	$(LAB) -e lab_state=absent $(ARGS)

demo: lab-host ## From bare servers to a drained node, in the lab
	$(STORIES) env -C ../../.. python -m ansible_collections.drover.kvm.tests.lab.demo $(ARGS)

# The playbook installs what the lab needs. DROVER_LAB_KEEP=1 leaves the lab up, also when no story used it.
stories: install stories-all ## The stories of tests/lab against the installed collection; ARGS="-k name" narrows

# Two parts for make test, each with a lab: the stories on the site that is set up, and all others, at once. After make install.
stories-site stories-others: LANE = --lane $(@:stories-%=%)
stories-others: STORY_LAB := $(STORY_LAB)-others
stories-all stories-site stories-others:
	$(LAB) -e lab_name=$(STORY_LAB) -e lab_prepared=true
	$(STORIES) env DROVER_LAB_NAME=$(STORY_LAB) pytest tests/lab --durations=15 $(LANE) $(ARGS); status=$$?; \
		[ "$${DROVER_LAB_KEEP:-0}" = 1 ] || $(LAB) -e lab_name=$(STORY_LAB) -e lab_state=absent >/dev/null || exit; exit $$status

# A run that was killed leaves molecule's note that the nodes exist; destroy takes away both.
MOLECULE := $(TOOL) $(INSTALLED) molecule

molecule: install ## Molecule scenarios
	$(call if_any,extensions/molecule/*/molecule.yml,$(MOLECULE) destroy --all && $(MOLECULE) test --all)

# For stories that make labs of their own: what the playbook would install, without a lab.
lab-host: install
	$(TOOL) $(INSTALLED) ansible -i localhost, -c local localhost -m ansible.builtin.include_role \
		-a 'name=drover.kvm.lab tasks_from=install' -e 'ansible_python_interpreter={{ ansible_playbook_python }}'

bench: lab-host ## Measurements, side by side; the table is in build/benchmarks.md
	rm -f $(BUILD)/benchmarks.md
	.ci/setup peers
	@source .ci/env.sh; $(STORIES) env DROVER_BENCHMARKS=$(BUILD)/benchmarks.md DROVER_PEERS="$$PEERS" \
		pytest -s tests/benchmarks $(ARGS)

soak: lab-host ## Stories that take long: long limits, nodes that are full VMs; docs/soak.md has the last result
	$(STORIES) pytest tests/soak $(ARGS)

# The stories on the site take longest; the others come beside their end, when all that computes is done.
test: ## The gates and the stories, quick first; stops at the first failure
	.ci/steps check install --then stories-site --beside docs dist sanity-main-quick unit-slow units-oldest sanity-newest-quick stories-others

test-all: ## What test runs, on all Pythons, then molecule
	.ci/steps check install molecule --then stories-site --beside docs dist sanity-main unit-slow units sanity-newest stories-others

clean: ## Remove what was built here and this checkout's staged copy; the cache stays
	@source .ci/env.sh; rm -rf $(BUILD) "$$STAGE_ROOT"
