# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks say to a call that they don't take, through ansible-playbook; no host is asked before that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.drover.kvm.tests.unit.playbook_run import ROOT, run

pytestmark = pytest.mark.slow
HOSTS: dict[str, Any] = {"hypervisors": {"hosts": {"hv1": {}}}, "vms": {"hosts": {"www1": {}, "db1": {}}}}


def call(folder: Path, playbook: str | Path, *words: str, place: Path | None = None, **groups: Any) -> tuple[int, str]:
    """Run a playbook on an inventory of names, from the folder `place`; its exit status and output as one line."""
    inventory = folder / "hosts.json"
    inventory.write_text(json.dumps({"all": {"children": {**HOSTS, **groups}}}))
    return run(folder, "-i", str(inventory), str(ROOT / "playbooks" / playbook), *words, place=place)


@pytest.mark.parametrize(
    "playbook, words",
    [
        ("build_vms.yml", "no variable vm; to narrow the VMs where it takes some of them, say vms=www1."),
        ("restore_vm.yml", "Say which node with -e node=NAME."),
    ],
)
def test_vm_is_refused_where_the_variable_is_vms(tmp_path, playbook, words):
    code, said = call(tmp_path, playbook, "-e", "vm=www1")
    assert code != 0 and words in said, said


@pytest.mark.parametrize("playbook", ["site.yml", "build_vms.yml"])
def test_a_variable_of_a_host_that_is_spelt_wrong_is_refused(tmp_path, playbook):
    """Values are not looked at: of one host's, another host may not have what they take."""
    servers = {"hosts": {"hv1": {"hypervisor_firmwares": ["efi"], "drover_weights": "{{ nobody.knows }}"}}}
    code, said = call(tmp_path, playbook, hypervisors=servers, others={"hosts": {"db2": {"drover_room": "a"}}})
    words = "hypervisor_firmwares (of hv1): hypervisor_firmware may be meant. What is your own"
    assert code != 0 and f"No such variable: drover_room (of db2); {words}" in said, said


def test_an_option_of_a_call_that_is_spelt_wrong_is_refused_in_all_playbooks_of_vms(tmp_path):
    code, said = call(tmp_path, "backup.yml", "-e", "drover_backup_pathh=/srv/backup")
    assert code != 0 and "drover_backup_pathh (of hv1): drover_backup_path may be meant" in said, said


@pytest.mark.parametrize(
    "playbook, said, words",
    [
        (
            "build_vms",
            "drover_fenced=hv2",
            """drover_fenced is a list, and is given as a text: say -e '{"drover_fenced": [""",
        ),
        ("rolling_update", "drover_ignore_units=certbot*", "drover_ignore_units is a list, and is given as a text"),
        ("stop_vms", "drover_start_order=db,web", "drover_start_order is a list, and is given as a text"),
        ("rolling_update", "drover_reboot=true", "drover_reboot is true; it is one of if_needed, always and never."),
    ],
)
def test_a_value_that_would_be_taken_for_another_is_refused(tmp_path, playbook, said, words):
    code, output = call(tmp_path, f"{playbook}.yml", "-e", said)
    assert code != 0 and words in output, output


def test_an_inventory_that_is_not_there_is_no_success(tmp_path):
    words = ["-i", str(tmp_path / "none"), str(ROOT / "playbooks/drain_node.yml"), "-e", "node=hv1"]
    code, said = run(tmp_path, *words)
    assert code != 0 and "has no host in group hypervisors; correct -i" in said, said


@pytest.mark.parametrize(
    "words, refusal",
    [
        (
            {"node": "hv1, hv2"},
            "hv2 is not in group hypervisors (hv1). Several names stand with commas and without blanks",
        ),
        ({"node": "hv1", "drover_plan_file": "none.json"}, "none.json; correct -e drover_plan_file."),
    ],
)
def test_a_node_with_a_blank_and_a_plan_that_is_not_there_are_named(tmp_path, words, refusal):
    code, said = call(tmp_path, "drain_node.yml", "-e", json.dumps(words))
    assert code != 0 and refusal in said, said


def test_what_a_site_has_named_for_itself_is_fine(tmp_path):
    words = ["-e", "drover_room=a", "-e", '{"drover_own_variables": ["drover_room"]}', "-e", "vms=nobody"]
    code, said = call(tmp_path, "build_vms.yml", *words)
    assert code != 0 and "No VM of group vms is named nobody" in said and "No such variable" not in said, said


def test_two_nodes_with_one_address_are_named_before_anything_is_done(tmp_path):
    hosts = {name: {"ansible_host": name, "hypervisor_migration_address": "192.0.2.1"} for name in ("hv1", "hv2")}
    role = {"name": "drover.kvm.hypervisor", "tasks_from": "addresses"}
    play = {"hosts": "hypervisors", "gather_facts": False, "tasks": [{"ansible.builtin.import_role": role}]}
    book = tmp_path / "addresses.json"
    book.write_text(json.dumps([play]))
    code, said = call(tmp_path, book, hypervisors={"hosts": hosts})
    assert code != 0 and "192.0.2.1 is the address of hv1 (hypervisor_migration_address) and hv2" in said, said
    site = yaml.safe_load((ROOT / "playbooks/site.yml").read_text(encoding="utf-8"))
    assert next(task for play in site[1:] for task in play["tasks"])["ansible.builtin.import_role"] == role


def test_playbooks_of_one_vm_say_so():
    playbooks = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("playbooks/*.yml")}
    one = {name for name, text in playbooks.items() if "# Variables: vm," in text}
    assert one and one == {name for name, text in playbooks.items() if "drover_one_vm: true" in text}


def test_simulate_finds_a_file_by_its_name_from_where_it_is_called(tmp_path):
    call_from = ROOT / "examples"
    code, said = call(tmp_path, "simulate.yml", "-e", "drover_cluster_file=simulate/cluster.yml", place=call_from)
    assert code == 0 and "web1 hv1 -> hv3 live" in said, said


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "cluster.yml; correct -e drover_cluster_file."),
        ("[]", "is to hold options of module plan"),
        ("operation: drain", "is to hold options of module plan"),
        ("nodes: []", "unless -e drover_operation=drain"),
        (
            "{nodes: [], operation: report, max_move: 1, saved: {}}",
            "no such option: max_move, saved. There are: affinity",
        ),
    ],
)
def test_simulate_says_what_its_file_lacks(tmp_path, content, words):
    file = tmp_path / "cluster.yml"
    if content is not None:
        file.write_text(content)
    code, said = call(tmp_path, "simulate.yml", "-e", f"drover_cluster_file={file}")
    assert code != 0 and words in said and "lookup" not in said, said
    code, said = call(tmp_path, "simulate.yml")
    assert code != 0 and "Say which file describes the cluster with -e drover_cluster_file=FILE" in said, said


def test_what_can_not_be_done_is_told_in_words_and_not_as_the_whole_plan(tmp_path):
    text = (ROOT / "examples/simulate/cluster.yml").read_text(encoding="utf-8").replace("fail_on_blockers: false", "")
    (tmp_path / "cluster.yml").write_text(text.replace("total: 51539607552", "total: 2147483648"))
    code, said = call(tmp_path, "simulate.yml", "-e", f"drover_cluster_file={tmp_path}/cluster.yml")
    assert code != 0 and "drain can't be done, 3 blockers: - db1 (" in said and "stages" not in said, said
    shown = said[said.index("fatal:") : said.index("PLAY RECAP")]
    assert set(json.loads(shown[shown.index("{") :])) == {"assertion", "changed", "evaluated_to", "msg"}


def end_of(folder: Path, playbook: str, task: str) -> Path:
    """A playbook of one task of the second play of `playbook`, with what is told to it by variables of the hosts."""
    *_check, play = yaml.safe_load((ROOT / "playbooks" / playbook).read_text(encoding="utf-8"))
    play["tasks"] = [one for one in play["tasks"] if one["name"] == task]
    path = folder / "end.yml"
    path.write_text(yaml.safe_dump([play]))
    return path


def test_backup_says_once_for_each_node_what_hit_all_its_vms(tmp_path):
    why = "the folder /mnt/backup does not exist; make it, or mount what belongs there"
    failed = [{"item": name, "failed": True, "msg": why} for name in ("www1", "db1")]
    facts = [{"domains": [{"name": "www1"}, {"name": "db1"}]}]
    nodes = {"hv1": {"drover_backed_up": {"results": failed}, "drover_facts": facts}, "hv2": {}}
    path = end_of(tmp_path, "backup.yml", "Tell which could not be backed up")
    code, said = call(tmp_path, path, hypervisors={"hosts": nodes})
    end = "What was there stays."
    assert code != 0 and f"www1, db1 on hv1: {why}. {end}" in said and said.count(why) == said.count(end), said


def test_backup_leaves_an_older_definition_of_a_vm_that_runs_elsewhere_alone(tmp_path):
    """Nothing would lock a volume of a SAN against being read there, and what is read would count as the newest."""

    def node(name, **states):
        return {"name": name, "domains": [{"name": vm, "state": state} for vm, state in states.items()]}

    nodes = [node("hv1", www1="stopped", db1="stopped", ldap1="running"), node("hv2", www1="running", db1="stopped")]
    own = {one["name"]: {"drover_node": {"node": one}, "drover_facts": nodes, "drover_backed_up": {}} for one in nodes}
    path = end_of(tmp_path, "backup.yml", "Tell which could not be backed up")
    (play,) = yaml.safe_load(path.read_text())
    words = "{{ inventory_hostname }} has {{ drover_here | join(' ') }}."
    told = {"name": "Tell", "ansible.builtin.debug": {"msg": words}}
    path.write_text(yaml.safe_dump([{**play, "tasks": [told, *play["tasks"]]}]))
    vms = {"hosts": {"www1": {}, "db1": {}, "ldap1": {}}}
    code, said = call(tmp_path, path, hypervisors={"hosts": own}, vms=vms)
    assert "hv1 has ldap1." in said and "hv2 has www1." in said, said
    assert code != 0 and "on more than one node: db1; virsh undefine it where it does not belong" in said, said


def test_a_good_backup_of_a_machine_that_had_the_name_before_is_none(tmp_path):
    old, new = ({"id": f"2026112{day}T030000Z", "uuid": uuid, "good": day == 1} for day, uuid in ((1, "1"), (2, "2")))
    lost = {"id": "20261123T030000Z", "uuid": "", "good": False}
    backups = {"www1": [old, new, lost], "db1": [{**old, "good": True}, lost], "gone1": []}
    read = {"drover_listed": {"results": [{"backups": backups}]}, "drover_read": {"results": []}}
    path = end_of(tmp_path, "verify_backups.yml", "Tell what is damaged, and who has no good backup")
    code, said = call(tmp_path, path, "-e", "drover_backup_path=/mnt/backup", hypervisors={"hosts": {"hv1": read}})
    assert code != 0 and "www1 has no good backup; gone1 has no good backup" in said and "db1 has" not in said, said


@pytest.mark.parametrize(
    "words, end", [((), "On the other nodes it is done; run this again."), (("--check",), "Nothing was changed.")]
)
def test_snapshot_vms_says_what_was_done(tmp_path, words, end):
    nodes = {"hv1": {"drover_done": {"failed": True, "msg": "db1 has no room"}}, "hv2": {"drover_done": {}}}
    path = end_of(tmp_path, "snapshot_vms.yml", "Tell where it could not be done")
    code, said = call(tmp_path, path, *words, hypervisors={"hosts": nodes})
    assert code != 0 and f"db1 has no room. {end}" in said, said


def around(folder: Path, playbook: str, works: bool) -> Path:
    """What `playbook` does around its work, of which only an end is left."""
    *_check, play = yaml.safe_load((ROOT / "playbooks" / playbook).read_text(encoding="utf-8"))
    (block,) = [task for task in play["tasks"] if "block" in task]
    block["block"][-1] = {"name": "Work", "ansible.builtin.assert": {"that": works}}
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "own_tasks.yml").write_bytes((ROOT / "playbooks/tasks/own_tasks.yml").read_bytes())
    path = folder / "around.yml"
    path.write_text(yaml.safe_dump([{**play, "tasks": [block]}]))
    return path


@pytest.mark.parametrize(
    "playbook, works, check, told",
    [
        ("undrain_node.yml", True, False, ["before hv1", "before hv2", "after hv1", "after hv2"]),
        ("drain_node.yml", False, False, ["before hv1", "before hv2", "after hv1", "after hv2"]),
        ("drain_node.yml", True, True, []),
    ],
)
def test_own_tasks_are_done_around_each_node_also_when_it_fails(tmp_path, playbook, works, check, told):
    words = ["-e", "node=hv1,hv2"]
    for when in ("before", "after"):
        line = f"echo {when} {{{{ drover_turn }}}} >>{tmp_path}/log"
        (tmp_path / f"{when}.yml").write_text(yaml.safe_dump([{"name": "Tell", "ansible.builtin.shell": line}]))
        words += ["-e", f"drover_{when}_tasks={when}.yml"]
    nodes = {"hosts": {name: {"ansible_connection": "local"} for name in ("hv1", "hv2", "hv3")}}
    path = around(tmp_path, playbook, works)
    code, said = call(tmp_path, path, *words, *(["--check"] if check else []), place=tmp_path, hypervisors=nodes)
    log = tmp_path / "log"
    assert (code == 0) == works and (log.read_text().splitlines() if log.exists() else []) == told, said


def test_a_file_of_own_tasks_that_is_not_there_is_refused(tmp_path):
    code, said = call(tmp_path, "drain_node.yml", "-e", "node=hv1", "-e", f"drover_after_tasks={tmp_path}/none.yml")
    assert code != 0 and f"There is no file {tmp_path}/none.yml." in said, said


def staged(folder: Path, module: str) -> Path:
    """A play over the stages of a plan, with `module`, which fails on hv2, in place of the migrations."""
    (move,) = yaml.safe_load((ROOT / "playbooks/tasks/share.yml").read_text(encoding="utf-8"))
    del move["drover.kvm.migrate"]
    move[module] = {"that": "inventory_hostname != 'hv2'", "success_msg": "came: {{ drover_share[0].vm }}"}
    (folder / "share.yml").write_text(json.dumps([move]))
    (folder / "stage.yml").write_bytes((ROOT / "playbooks/tasks/stage.yml").read_bytes())
    moves = [[{"vm": "room1", "from": "hv2", "mode": "live"}], [{"vm": "large1", "from": "hv1", "mode": "live"}]]
    stages: dict[str, Any] = {"ansible.builtin.include_tasks": str(folder / "stage.yml"), "loop": moves}
    stages["loop_control"] = {"loop_var": "drover_stage"}
    path = folder / "play.yml"
    path.write_text(json.dumps([{"hosts": "hypervisors", "gather_facts": False, "tasks": [stages]}]))
    return path


def test_no_stage_begins_after_one_that_failed_on_another_node(tmp_path):
    nodes = {"hosts": {name: {"ansible_connection": "local"} for name in ("hv1", "hv2")}}
    code, said = call(tmp_path, staged(tmp_path, "ansible.builtin.assert"), hypervisors=nodes)
    assert code != 0 and "fatal: [hv2]" in said and "came: " not in said, said


def test_the_volumes_of_a_vm_stay_on_the_san_while_a_node_could_not_remove_it(tmp_path):
    """Another node goes on where one has failed, and would carry out what is run once."""
    *_check, play = yaml.safe_load((ROOT / "playbooks" / "remove_vms.yml").read_text(encoding="utf-8"))
    tasks = {one["name"]: one for one in play["tasks"]}
    vm, volumes = tasks["Remove them from each node"], tasks["Remove their volumes from the SAN"]
    del vm["drover.kvm.vm"], volumes["drover.kvm.iscsi_volume"]
    path = tmp_path / "remove.yml"
    for refused in (True, False):
        vm["ansible.builtin.assert"] = {"that": not refused, "fail_msg": "hv3 gave no answer"}
        volumes["ansible.builtin.debug"] = {"msg": "their data is deleted"}
        path.write_text(yaml.safe_dump([{**play, "tasks": [vm, volumes]}]))
        nodes = {"hv1": {"drover_node": {"node": {"domains": [{"name": "www1"}]}}}, "hv2": {}}
        options = json.dumps({"vms": "www1", "remove_disks": True, "drover_volumes": [{"name": "www1-0"}]})
        code, said = call(tmp_path, path, "-e", options, hypervisors={"hosts": nodes})
        assert (code != 0) is refused and ("hv3 gave no answer" in said) is refused, said
        assert ("their data is deleted" in said) is not refused, said


def test_what_a_node_said_before_it_failed_is_no_answer(tmp_path):
    said = {"drover_node": {"node": {"name": "{{ inventory_hostname }}"}}}
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/node_facts.yml").read_text(encoding="utf-8"))
    tasks = [task for task in tasks if "drover.kvm.node_info" not in task]
    fails = {"ansible.builtin.fail": None, "when": "inventory_hostname == 'hv2'"}
    seen = {"ansible.builtin.debug": {"msg": "silent {{ drover_unreachable }} of {{ drover_facts | length + 1 }}"}}
    path = tmp_path / "play.yml"
    play = {"hosts": "hypervisors", "gather_facts": False}
    path.write_text(json.dumps([{**play, "tasks": [{"ansible.builtin.set_fact": said}, fails, *tasks, seen]}]))
    _code, words = call(tmp_path, path, hypervisors={"hosts": {"hv1": {}, "hv2": {}}})
    assert "silent ['hv2'] of 2" in words, words


@pytest.mark.parametrize(
    "clocks, options, words",
    [
        (
            {"hv1": 4605.5, "hv2": 1005.0, "hv3": 1000.0},
            {},
            "The clocks of hv3 and hv1 are 3605 s apart (hv1 is ahead).",
        ),
        ({"hv1": 4605.5, "hv2": 1005.0}, {"drover_clock_skew": "3700"}, ""),
        # With one fork a node that gives no answer comes between the questions to the others.
        ({"hv1": 1000.0, "hv3": 1075.0}, {"drover_asking": 80.5}, ""),
        ({"hv1": 1000.0, "hv3": 1075.0}, {"drover_asking": 10.5}, "hv1 and hv3 are 64 s apart (hv3 is ahead)"),
        ({}, {}, ""),
    ],
)
def test_clocks_that_are_apart_are_named_before_a_move(tmp_path, clocks, options, words):
    book = tmp_path / "clocks.yml"
    tasks = [{"name": "Look", "ansible.builtin.import_tasks": str(ROOT / "playbooks/tasks/check_clocks.yml")}]
    book.write_text(yaml.safe_dump([{"name": "Look", "hosts": "hypervisors", "gather_facts": False, "tasks": tasks}]))
    facts = [{"name": name, "clock": clock} for name, clock in clocks.items()]
    code, said = call(tmp_path, book, "-e", json.dumps({"drover_facts": facts, **options}))
    assert (code != 0) == bool(words) and words in said, said


def test_how_long_the_nodes_were_asked_is_known(tmp_path):
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/node_facts.yml").read_text(encoding="utf-8"))
    ask = next(task for task in tasks if "drover.kvm.node_info" in task)
    del ask["drover.kvm.node_info"], ask["register"]
    ask["ansible.builtin.pause"] = {"seconds": 1}
    seen = {"ansible.builtin.assert": {"that": ["drover_asking | float >= 1", "drover_asking | float < 60"]}}
    book = tmp_path / "facts.yml"
    book.write_text(yaml.safe_dump([{"hosts": "hypervisors", "gather_facts": False, "tasks": [*tasks, seen]}]))
    code, said = call(tmp_path, book)
    assert code == 0, said


def part(folder: Path, tasks: str, names: Sequence[str], **instead: Any) -> Path:
    """A play of some tasks of a file, wherever they stand there, with other modules in place of those of `instead`."""
    found: dict[str, dict[str, Any]] = {}
    around: dict[str, Any] = {}
    todo = yaml.safe_load((ROOT / "playbooks/tasks" / tasks).read_text(encoding="utf-8"))
    for task in todo:
        todo += task.get("block", [])
        around |= task["vars"] if "block" in task and "vars" in task else {}
        found[task["name"]] = task
    for name, module in instead.items():
        task = found[name.replace("__", ", ").replace("_", " ")]
        del task[next(key for key in task if "." in key)]
        task.update(module)
    path = folder / "part.yml"
    play = {"name": "Part", "hosts": "hypervisors", "gather_facts": False, "vars": around}
    path.write_text(yaml.safe_dump([{**play, "tasks": [found[name] for name in names]}]))
    return path


@pytest.mark.parametrize(
    "cordon, state, words",
    [
        ({"reason": "rolling_update"}, "stopped", ""),
        (None, "stopped", "hv1 is not rebooted: its cordon was lifted meanwhile."),
        ({"reason": "rolling_update"}, "running", "hv1 is not rebooted: it runs www1."),
        (None, "paused", "hv1 is not rebooted: its cordon was lifted meanwhile; it runs www1."),
    ],
)
def test_a_node_that_vms_came_back_to_during_the_upgrade_is_not_rebooted(tmp_path, cordon, state, words):
    facts = {"node": {"cordon": cordon, "domains": [{"name": "www1", "state": state}]}}
    seen = {"ansible.builtin.set_fact": {"drover_again": facts}, "register": "drover_told"}
    down = {"ansible.builtin.debug": {"msg": "down it goes"}}
    path = part(
        tmp_path, "rolling_upgrade.yml", ["Reboot it while it is still empty"], Look_at_it_again=seen, Reboot_it=down
    )
    code, said = call(tmp_path, path, "-e", "drover_rebooting=always")
    assert (code != 0) == bool(words) and words in said and ("down it goes" in said) != bool(words), said


@pytest.mark.parametrize("cordon, gone", [({"reason": "rolling_update"}, "bridge br1 is gone"), (None, "nothing")])
def test_a_run_that_goes_on_knows_what_the_node_had_before(tmp_path, cordon, gone):
    """Else a bridge that an update took away would not be missed any more."""
    had = {"bridges": [{"name": "br0"}, {"name": "br1"}], "memory": {"total": 5}}
    now = {"name": "hv1", "cordon": cordon, "bridges": [{"name": "br0"}], "memory": {"total": 5}, "domains": []}
    path = part(
        tmp_path,
        "rolling_node.yml",
        ["Remember what the node has, or had when its turn began", "Write down that it is done but for that"],
        Write_down_that_it_is_done_but_for_that={
            "ansible.builtin.debug": {
                "msg": "{{ (now | drover.kvm.node_faults(had)) or ['nothing'] }} {{ had.keys() }}"
            }
        },
    )
    options = {
        "drover_facts": [now],
        "drover_turn": "hv1",
        "drover_record": {"had": had},
        "now": now,
        "had": "{{ drover_progress.had }}",
        "drover_filling": [],
    }
    code, said = call(tmp_path, path, "-e", json.dumps(options))
    assert code == 0 and gone in said and "bridges" in said and "domains" not in said, said


@pytest.mark.parametrize("more, due", [({}, False), ({"drover_upgrades": True}, True)])
def test_packages_that_came_out_since_are_no_part_of_what_is_done(tmp_path, more, due):
    path = part(tmp_path, "rolling_work.yml", ["See whether it is to be done", "Choose the nodes"])
    tasks = yaml.safe_load(path.read_text(encoding="utf-8"))
    tasks[0]["tasks"].append({"ansible.builtin.debug": {"msg": "to do: {{ drover_todo }}"}})
    path.write_text(yaml.safe_dump(tasks))
    record = {"work": "packages", "done": 4_000_000_000}
    options = {"drover_asked": ["hv1"], "drover_facts": [], "drover_work": "packages", "drover_rebooting": "always"}
    more = {"drover_upgrades": False, "drover_reboot_needed": False, **more}
    code, said = call(tmp_path, path, "-e", json.dumps({**options, **more, "drover_record": record}))
    assert code == 0 and f"to do: {['hv1'] if due else []}" in said, said


@pytest.mark.parametrize(
    "more, words",
    [
        ({"marker": {"from": "hv3", "to": "hv1"}, "state": "paused"}, "www1 was on its way from hv3 when that died"),
        ({"marker": {"from": "hv3", "to": "hv1"}, "state": "running"}, ""),
        ({"marker": {"from": "hv2", "to": "hv1"}, "state": "paused"}, ""),
        ({"marker": None, "state": "stopped"}, ""),
    ],
)
def test_a_failover_does_not_end_well_while_a_vm_is_left_halfway(tmp_path, more, words):
    path = end_of(tmp_path, "failover_node.yml", "Name the VMs that were on their way from it")
    facts = [
        {"name": "hv1", "domains": [{"name": "www1", **more}, {"name": "db1", "marker": None, "state": "running"}]}
    ]
    options = {"drover_facts": facts, "node": "hv3", "drover_names_lost": []}
    code, said = call(tmp_path, path, "-e", json.dumps(options))
    assert (code != 0) == bool(words) and words in said and ("fenced: [hv3]" in said) == bool(words), said
