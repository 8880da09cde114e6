#!/usr/bin/python
# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm: one VM of a node, or many."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm
short_description: Define, change, start, stop and remove virtual machines
version_added: "0.1.0"
author:
  - The drover.kvm contributors (@drover)
description:
  - Brings one virtual machine of a node, or many, to what their sheets say. It runs on the node, against the local
    libvirt.
  - The definition is edited in place. What the module has no option for, and options that are not given, stay as they
    are, so machines that other tools made can be taken over.
  - UUID and MAC addresses follow from the name, unless they are given. A machine that is built again is the same one.
    One that exists keeps those that it has.
  - A new machine has a serial console, a memory balloon and virtio devices. It has no graphics unless it is given some.
  - Before it makes or starts a machine, the module asks all other nodes in C(/etc/drover/cluster.json). A machine that
    exists on another node, by name or by UUID, is refused. So are a MAC address and a disk that another machine has. A
    node without that file has no peers.
  - A change of a running machine is written to its definition, and made in the machine at once where QEMU can. What the
    guest does not have yet is told in RV(pending_restart), with the reason where it is a device, on every run until the
    machine was powered off and on; O(restart=allowed) has that done. The words of RV(actions) say "at once" and "from
    its next start".
  - At once come and go disks on the buses V(virtio) and V(scsi), NICs, and the media of drives. At once change memory
    and virtual CPUs within their maximum, O(cpu_quota), size and limits of a disk, bridge, VLANs, link, limits and
    address checks of a NIC, and tags. What is not changed keeps its address, its name and its order in the guest.
  - A disk or NIC that is attached gets the PCI address that the definition has for it, or the next that is free where
    something sits there. A machine of type V(q35) needs a free PCI port for each disk on V(virtio) and each NIC. New
    machines have 14 of them, and four that are free at least; where none is, the device comes with the next start.
  - A disk is attached only after the peers were asked, as before a start.
  - A guest has to let go of what is detached. When it has not after 30 seconds, the module fails and says so. The
    definition is without the device then, and the next run tries again. A guest that does not know hot-plug needs
    O(state=restarted) then. Unmount a disk in the guest first; it may be taken from it while it is in use.
  - Where role P(drover.kvm.hypervisor#role) has set a lease directory, each machine has one lease in its definition,
    C(<lease>) with its UUID as key, and a file of that name in the directory. The file is made before the definition
    and deleted with the last one. A start is refused while somebody holds the lease; after a start the machine must
    hold it itself. A machine that runs without it has it from its next start. Other leases of a definition stay.
  - No disk loses data, except with O(remove_disks).
options:
  name:
    description:
      - Name of the machine. 1 to 63 letters, digits, dots, hyphens and underscores.
      - Required unless O(vms) is given.
    type: str
  state: &state
    description:
      - V(present) is defined; its power stays as it is.
      - V(running) is defined and runs. A machine that was paused by request is resumed, when no peer has it. So is one
        that an I/O error of its storage paused, and it is watched for two seconds. One that is paused or crashed for
        another reason is refused with the reason, never resumed. One with the marker of a migration is left to module
        M(drover.kvm.migrate) with O(drover.kvm.migrate#module:state=recovered).
      - V(paused) is defined and has its memory, and its CPUs stand still. A machine that is off is started for that.
        One that an error or a migration paused is refused with the reason.
      - V(restarted) is an act and no state, and is done on each run. The guest is asked to shut down and the machine is
        started again, with all that is in its definition. With O(force=true) its power is cut instead. A machine that
        is off is started. It is refused while it could not be started again, as peers are silent or have it.
      - V(stopped) is defined and off. The guest is asked to shut down, and waited for.
      - V(absent) is not defined. Its disks stay, unless O(remove_disks) is set. A machine that runs is refused, unless
        O(force) is set.
      - The default is V(present).
    type: str
    choices: [present, running, paused, restarted, stopped, absent]
  uuid: &uuid
    description:
      - UUID of the machine. It can't be changed later.
      - The default is made from O(name).
    type: str
  memory: &memory
    description:
      - Memory in bytes, or with a unit such as V(4GiB); whole mebibytes. Required for a new machine.
      - Where O(max_memory) was never given, or is less than this, the maximum is this.
      - Within the maximum with which a machine was started, it changes at once. The guest is asked once, and gives back
        what it can; one without a driver for the balloon keeps what it has.
    type: str
  max_memory: &max_memory
    description:
      - The most that the memory can be changed to as the machine runs, by its balloon, in bytes or with a unit. Nodes
        and plans count the machine with it.
      - The default is O(memory).
    type: str
    version_added: "0.1.0"
  min_memory: &min_memory
    description:
      - The least memory that the node's own program leaves the machine when the node runs short, in bytes or with a
        unit; at most O(memory). What was taken comes back when there is room. Kept in its metadata.
      - Only where role C(drover.kvm.hypervisor) has switched that program on (C(hypervisor_balloon_threshold)), and not
        for a machine with O(hugepages), host devices, or without a driver for the balloon.
      - Where the balloon is between this and O(memory) is no change and no reason for a restart.
      - V(0) takes it away. By default nothing is taken.
    type: str
    version_added: "0.1.0"
  hugepages: &hugepages
    description:
      - Whether the node backs the memory with huge pages. V(true) takes its default size of them, V(2MiB) or V(1GiB)
        asks for that size. The node must have reserved enough of them, or the machine does not start.
      - The default is V(false).
    type: raw
    version_added: "0.1.0"
  nosharepages: &nosharepages
    description:
      - Whether the node keeps the machine's memory out of what it merges with that of others (KSM), see
        M(drover.kvm.ksm). Merged pages let one machine learn what stands in another's memory. It matters only on nodes
        that merge.
      - The default is V(false).
    type: bool
  vcpus: &vcpus
    description:
      - Number of virtual CPUs. Required for a new machine.
      - Where O(max_vcpus) was never given, or is less than this, the maximum is this.
      - Within the maximum with which a machine was started, it changes at once, but never below the number with which
        it was started. The guest must know hot-plug of CPUs.
    type: int
  max_vcpus: &max_vcpus
    description:
      - The most that the number of virtual CPUs can be changed to as the machine runs.
      - The default is O(vcpus).
    type: int
    version_added: "0.1.0"
  cpu: &cpu
    description:
      - CPU model. V(host-model), V(host-passthrough), V(maximum), or the name of a model that QEMU knows, such as
        V(Nehalem) or V(EPYC).
      - The default for a new machine under KVM is V(host-model), which lets it move between nodes with equal CPUs.
        Under emulation it is V(Nehalem), which is the same on every node.
      - Where the nodes differ, name the oldest model among them.
    type: str
  cpu_features: &cpu_features
    description:
      - Features beside those of the model O(cpu), exactly these; V({}) takes all away. Another O(cpu) without this
        option has none.
      - Each is one more thing that a node must have to run the machine, and that decides where it can move.
    type: dict
    version_added: "0.1.0"
    suboptions:
      require:
        description: What the CPU must have, such as V(pcid) or V(vmx). A node without it refuses to start the machine.
        type: list
        elements: str
      disable:
        description: What the guest must not see.
        type: list
        elements: str
  cpu_topology: &cpu_topology
    description:
      - How the guest sees its CPUs arranged, exactly this; V({}) takes it away. Some systems and licences count
        sockets. The product must be O(max_vcpus).
      - Without it each CPU is a socket of its own. Where there is one, another number of CPUs changes the sockets.
    type: dict
    version_added: "0.1.0"
    suboptions:
      sockets:
        description:
          - Number of sockets.
          - The default is as many as O(max_vcpus) fills.
        type: int
      dies:
        description:
          - Dies in a socket.
          - The default is V(1).
        type: int
      cores:
        description:
          - Cores in a die.
          - The default is V(1).
        type: int
      threads:
        description:
          - Threads of a core.
          - The default is V(1).
        type: int
  cpu_shares: &cpu_shares
    description:
      - Weight of the machine where CPU time is short, 2 to 10000. One with twice as many as another gets twice the
        time. V(0) is the default of libvirt, 100 on nodes with cgroups version 2.
    type: int
    version_added: "0.1.0"
  cpu_quota: &cpu_quota
    description:
      - The most CPU time that each virtual CPU may take, in per cent of a CPU of the node, also where nobody else wants
        it. V(0) takes the limit away. It changes at once.
      - The default is no limit.
    type: int
  virt_type: &virt_type
    description:
      - V(kvm) is the hardware's virtualisation, V(qemu) is emulation. It can't be changed later.
      - The default for a new machine is V(kvm) where libvirt finds it on the node, else V(qemu).
    type: str
    choices: [kvm, qemu]
  machine: &machine
    description:
      - The emulated computer. A family, V(q35) or V(pc), or a version of it, such as V(pc-q35-9.2), as
        C(qemu-system-x86_64 -machine help) lists them.
      - With a family libvirt takes the newest version that the node has at the time, and that stays; a family is no
        change of a machine that has any version of it. Another version of the same family counts from the next start;
        each node that runs the machine must have it. Another family is refused.
      - The default for a new machine is V(q35) where the node has it, else V(pc).
    type: str
  firmware: &firmware
    description:
      - V(bios), or V(efi) for UEFI, whose file libvirt finds on the node (C(ovmf) on Debian, option
        O(drover.kvm.hypervisor#role:main:hypervisor_firmware)). It can't be changed later.
      - The variables of UEFI are in a file of the node, C(/var/lib/libvirt/qemu/nvram/NAME_VARS.fd). They go along when
        the machine moves (M(drover.kvm.migrate)). With O(state=absent) they stay like the disks, so that the machine
        can be built again, and go with O(remove_disks=true).
      - The default is V(bios).
    type: str
    choices: [bios, efi]
    version_added: "0.1.0"
  secure_boot: &secure_boot
    description:
      - Whether UEFI starts only what is signed; the keys of Microsoft, which sign the loaders of most systems, are
        enrolled. Needs O(firmware=efi) and O(machine=q35). It can't be changed later.
      - The default is V(false).
    type: bool
    version_added: "0.1.0"
  tpm: &tpm
    description:
      - V(2.0) is an emulated TPM (C(swtpm) on the node, option
        O(drover.kvm.hypervisor#role:main:hypervisor_firmware)). Its keys are in a file of the node, for which holds
        what O(firmware) says of the variables.
      - "B(Danger:) a guest that has sealed its disk with it can't read the disk without it."
      - When it is taken away, with V(none), its keys stay below C(/var/lib/libvirt/swtpm) of the node, also when the
        machine is removed after that.
      - The default is V(none).
    type: str
    choices: [none, "2.0"]
    version_added: "0.1.0"
  boot: &boot
    description:
      - Kinds of devices from which the firmware boots, in this order. One or more of V(disk), V(cdrom) and V(network).
        It takes the place of all O(disks[].boot_order) and O(nics[].boot_order).
      - The default for a new machine is V(disk), unless one of its devices has a O(disks[].boot_order).
    type: list
    elements: str
  clock: &clock
    description:
      - What the computer's clock is set to at a start. V(localtime), the time zone of the node, is for Windows.
      - The default is V(utc).
    type: str
    choices: [utc, localtime]
    version_added: "0.1.0"
  timers: &timers
    description:
      - How the computer's timers behave. What is not given stays.
      - A new machine has what suits Linux, C(rtc=catchup), C(pit=delay) and C(hpet=false). Windows wants
        C(hypervclock=true) as well.
    type: dict
    version_added: "0.1.0"
    suboptions:
      rtc:
        description: Ticks of the real-time clock that the guest missed are made up for (V(catchup)) or come late.
        type: str
        choices: [catchup, delay]
      pit:
        description: Ticks of the interval timer that the guest missed come late (V(delay)) or never.
        type: str
        choices: [delay, discard]
      hpet:
        description: Whether there is a high precision event timer.
        type: bool
      kvmclock:
        description: Whether a Linux guest under KVM can read the node's clock.
        type: bool
      hypervclock:
        description: Whether a Windows guest can, in the way of Hyper-V.
        type: bool
  agent: &agent
    description:
      - Whether there is the channel C(org.qemu.guest_agent.0), by which the guest agent can be asked.
      - The default for a new machine is V(true).
    type: bool
    version_added: "0.1.0"
  rng: &rng
    description:
      - Whether there is a random number generator, fed from C(/dev/urandom) of the node.
      - The default for a new machine is V(true).
    type: bool
    version_added: "0.1.0"
  watchdog: &watchdog
    description:
      - What acts when the guest no longer shows that it lives; its system must serve it. What is not given stays.
      - By default there is none, but for the one that is built into O(machine=q35), which acts in the same way.
    type: dict
    version_added: "0.1.0"
    suboptions:
      model:
        description: V(i6300esb), V(ib700) for O(machine=pc), or V(none) to take it out.
        type: str
        choices: [none, i6300esb, ib700]
        required: true
      action:
        description:
          - V(reset), V(shutdown) (the guest is asked), V(poweroff), V(pause), V(dump) to a file of the node and reset,
            V(inject-nmi), or V(none). A machine that is paused by it is not resumed by O(state=running).
          - The default is V(reset).
        type: str
        choices: [reset, shutdown, poweroff, pause, none, dump, inject-nmi]
  console_log: &console_log
    description:
      - File below C(/var/log) of the node to which all that the serial console says is appended, such as
        C(/var/log/libvirt/qemu/web1-console.log). The folder must be there on each node that runs the machine. The
        file stays on a node when the machine leaves it. An empty text ends it.
      - By default there is none.
    type: path
    version_added: "0.1.0"
  graphics: &graphics
    description:
      - A screen to be seen over the network. A new one has a free port from 5900 on, and no password; C(virsh
        domdisplay) tells the port.
    type: dict
    version_added: "0.1.0"
    suboptions:
      type:
        description:
          - V(vnc), V(spice), or V(none), which takes it out. Another type takes the place of the one that is there.
          - The default for a new machine is V(none).
        type: str
        choices: [none, vnc, spice]
        required: true
      listen:
        description:
          - Address on which the node listens. Everybody who can reach it sees the screen and can type; over the
            default V(127.0.0.1), these are those who have an account on the node, through ssh. With V(0.0.0.0) the
            machine can be moved, with another address of one node it can't.
          - The default of a new screen is V(127.0.0.1).
        type: str
  video: &video
    description:
      - The graphics card.
      - The default of a new machine is V(none), of one that gets O(graphics) and has no card V(vga).
    type: str
    choices: [none, vga, virtio, qxl, bochs, cirrus]
    version_added: "0.1.0"
  hostdevs: &hostdevs
    description:
      - Devices of the node that the machine has for itself, exactly these. They count from the next start. Devices of
        other types in its definition stay.
      - "B(Danger:) the node loses the device while the machine runs. A PCI device is refused where the node itself uses
        it, as a network interface that is up or by a disk that is in use, and where it has no IOMMU group."
      - A machine that has one does not move while it runs; planners and M(drover.kvm.migrate) name it as the reason.
    type: list
    elements: dict
    version_added: "0.1.0"
    suboptions:
      type:
        description: V(pci), named by O(hostdevs[].address), or V(usb).
        type: str
        choices: [pci, usb]
        required: true
      address:
        description: Address of a PCI device, such as V(0000:65:00.0); C(lspci -D) lists them.
        type: str
      vendor:
        description:
          - The maker of a USB device, as C(lsusb) shows it, such as V(046d). It goes with O(hostdevs[].product), and
            both find the device wherever it is plugged in. Put it in quotes.
        type: str
      product:
        description: The number that the maker gave the device, such as V(c52b). Put it in quotes.
        type: str
      bus:
        description:
          - The bus of a USB device, in the place of its maker, where there are several alike. It goes with
            O(hostdevs[].device).
        type: int
      device:
        description: Its number on the bus, which is another one when it is plugged in again.
        type: int
  filesystems: &filesystems
    description:
      - Folders of the node that the guest can mount with virtiofs (C(mount -t virtiofs TARGET /mnt)), exactly these.
        They count from the next start. The node needs C(virtiofsd), on Debian 13 the package of that name. Shares of
        another kind stay.
      - "B(Danger:) root of the guest is root in the folder. A folder of the operating system is refused, and so is one
        that is not there."
      - The machine's memory is shared with C(virtiofsd) then, and stays so when the folders are taken away.
      - A machine that has one does not move while it runs; planners and M(drover.kvm.migrate) name it as the reason.
    type: list
    elements: dict
    version_added: "0.1.0"
    suboptions:
      source:
        description: The folder, an absolute path.
        type: path
        required: true
      target:
        description: The name by which the guest mounts it, at most 36 characters.
        type: str
        required: true
  title: &title
    description:
      - Short text for people, one line, which other tools show beside the name or in its place. Empty removes it.
      - It is changed in the definition at any time, and is never a reason for a restart.
      - By default a new machine has none.
    type: str
    version_added: "0.1.0"
  description: &description
    description:
      - One line about the machine. Empty removes it.
    type: str
  owner: &owner
    description:
      - To whom the machine belongs, one line, kept in its metadata. Empty removes it.
    type: str
    version_added: "0.1.0"
  rollback_safe: &rollback_safe
    description:
      - Whether the machine may be set back to a snapshot without harm to others, kept in its metadata. It is not so for
        one of several that keep data together, such as a member of a database cluster.
      - By default nothing is said.
    type: bool
    version_added: "0.1.0"
  on_maintenance: &on_maintenance
    description:
      - What becomes of the running machine when its node is drained, kept in its metadata. Without a word it is
        V(migrate). C(drain_node), C(undrain_node) and C(rolling_update) keep to it, see M(drover.kvm.plan).
      - V(migrate) moves it while it runs.
      - V(restart) shuts it down, moves it and starts it on the other node, and does the same on its way back.
      - V(shutdown) shuts it down where it is; it starts again when the node returns (C(undrain_node)). So its disks and
        devices may be the node's own.
      - V(leave) leaves it as it is, so the node is not empty; the drain names it. A drain for a reboot is refused.
      - V(refuse) refuses the drain while the machine runs there.
      - With all but V(migrate), it is never moved to even out loads, to make room or to save power.
    type: str
    choices: [migrate, restart, shutdown, leave, refuse]
    version_added: "0.1.0"
  disks: &disks
    description:
      - The disks, exactly these, in the order in which the guest finds them. Kinds of storage for which there is no
        O(disks[].type) yet are left alone.
      - A disk is found again by O(disks[].target), else by its storage. To take a disk from the list takes it from the
        machine; its data stays.
      - Disks on the buses V(virtio) and V(scsi) come and go at once. So do the medium of a drive, O(disks[].size),
        O(disks[].iops) and O(disks[].bandwidth). A disk on V(sata), a drive, the first disk on V(scsi), and other
        values of a disk that is there count from the next start.
    type: list
    elements: dict
    suboptions:
      type:
        description:
          - V(iscsi) is a logical unit of an iSCSI target, to which QEMU itself logs in. The node needs no session.
          - V(file) is a file on the node.
          - V(rbd) is an image of a Ceph cluster, which QEMU itself opens. It is made by this module with the rights
            that role P(drover.kvm.ceph_client#role) gives the node. A machine is not started while a client has its
            image open, as Ceph itself would let both write.
          - V(block) is a block device that the node has, by a name that follows what it is. For the volumes of a SAN
            role P(drover.kvm.san_initiator#role) makes such names. It must be there; this module neither makes nor
            removes it. A machine is not started while anything else on the node uses the device.
          - V(lvm) is a logical volume, which this module makes and marks. In a shared group (lvmlockd, see
            M(drover.kvm.volume_group)) it is active on the one node that runs the machine, and a start is refused while
            another node has it. It comes to a running machine, and leaves it, at the next start.
        type: str
        choices: [iscsi, file, rbd, block, lvm]
        required: true
      target:
        description:
          - Name of the disk on the bus, such as V(vda). Its letter is also the number of the disk in the default
            O(disks[].path). Give it where disks may be taken from the middle of the list.
          - The default is the first that is free.
        type: str
      device:
        description:
          - V(disk), or V(cdrom) for an image that is only read.
          - The default is V(disk).
        type: str
        choices: [disk, cdrom]
      bus:
        description:
          - The default is V(virtio), and V(sata) for a cdrom. It can't be changed later.
          - The first disk on V(scsi) brings a controller of the model C(virtio-scsi) with it.
        type: str
        choices: [virtio, scsi, sata]
      format:
        description:
          - Format of a file; it is never guessed. Required for a new disk of O(disks[].type=file) that is no cdrom.
          - It is V(raw) for everything else.
        type: str
        choices: [raw, qcow2]
      serial:
        description:
          - Serial number that the guest sees, at most 20 characters. An empty text takes it away.
        type: str
      error_policy:
        description:
          - What happens when the storage fails. With V(stop) the machine is paused and the guest sees no error; when
            the storage is back, O(state=running) resumes it. With V(report) the guest gets the error, with V(enospace)
            only one that is not for want of space.
          - The default of a new disk is V(stop).
        type: str
        choices: [stop, report, enospace]
      rerror_policy:
        description:
          - The same for what is read only.
          - The default is O(disks[].error_policy), of which V(enospace) means V(report) here.
        type: str
        choices: [stop, report]
      readonly:
        description:
          - Whether the guest can only read it.
          - The default is V(false), and V(true) for a cdrom.
        type: bool
      boot_order:
        description:
          - Its place, from 1 on, among the disks and NICs from which the firmware boots; V(0) takes it off these.
            As soon as one device has a place, only those that have one are tried, and O(boot) has no say and must not
            be given.
          - By default O(boot) says what is tried.
        type: int
        version_added: "0.1.0"
      cache:
        description:
          - Who keeps what was read and written. V(none) and V(directsync) go past the node's memory, V(writeback) and
            V(writethrough) use it, V(unsafe) also takes no notice when the guest asks for its data to be safe. With
            another one than V(none) and V(directsync), libvirt may refuse to move a running machine.
          - The default of a new disk is V(writeback) for RBD, that of libvirt for a file, and V(none) for others.
        type: str
        choices: [none, writeback, writethrough, directsync, unsafe]
        version_added: "0.1.0"
      io:
        description:
          - How QEMU waits for the storage. V(native) needs O(disks[].cache=none) or O(disks[].cache=directsync).
          - The default of a new disk of type V(block) and V(lvm) is V(native) where it can be; else libvirt chooses.
        type: str
        choices: [native, threads, io_uring]
        version_added: "0.1.0"
      discard:
        description:
          - Whether storage is given back that the guest no longer uses (V(unmap)) or not (V(ignore)).
          - The default of a new disk is that of libvirt, V(ignore), for iSCSI, and V(unmap) for others.
        type: str
        choices: [unmap, ignore]
        version_added: "0.1.0"
      detect_zeroes:
        description:
          - What becomes of zeroes that the guest writes. With V(on) QEMU tells the storage that they are zeroes, which
            can spare the writing; with V(unmap) their room is given back, as if the guest had discarded them. That is
            for guests that wipe but can't discard. Looking for zeroes takes time of the node's CPUs at each write.
          - Without O(disks[].discard=unmap), V(unmap) does what V(on) does.
          - The default is that of libvirt, V(off).
        type: str
        choices: ["off", "on", unmap]
        version_added: "0.1.0"
      queues:
        description:
          - Number of queues of a disk on the bus V(virtio).
          - By default, and with V(0), QEMU makes one for each virtual CPU.
        type: int
        version_added: "0.1.0"
      rotation_rate:
        description:
          - What the guest is told of how fast the disk turns, whatever the storage is. V(1) is a medium that does not
            turn, such as an SSD; V(1025) to V(65534) are turns per minute. V(0) says nothing.
          - It is for disks on the buses V(scsi) and V(sata), and on C(ide) of a machine that was taken over; not for a
            cdrom.
          - By default nothing is said, which most guests take for a disk that turns.
        type: int
      physical_block_size:
        description:
          - What the guest is told of how much the storage writes at once, a power of two from V(512) to V(2MiB), in
            bytes or such as V(4KiB). A guest puts its file systems on such boundaries, so that storage with blocks of
            4 KiB need not read before each write. Sectors still have 512 bytes, so what is on the disk stays readable.
          - By default, and with V(0), QEMU says 512 bytes.
        type: str
      iops:
        description: Most requests in a second, exactly this; V({}) takes all limits away.
        type: dict
        version_added: "0.1.0"
        suboptions:
          total:
            description: Both ways together; it does not go with the others.
            type: int
          read:
            description: What is read.
            type: int
          write:
            description: What is written.
            type: int
      bandwidth:
        description: Most bytes in a second, exactly this; V({}) takes all limits away.
        type: dict
        version_added: "0.1.0"
        suboptions:
          total:
            description: Both ways together, in bytes or with a unit; it does not go with the others.
            type: str
          read:
            description: What is read, in bytes or with a unit such as V(100MiB).
            type: str
          write:
            description: What is written, in bytes or with a unit.
            type: str
      size:
        description:
          - Size of a file, image or logical volume, in bytes or with a unit such as V(40GiB); whole mebibytes.
            Required when there is none, unless O(disks[].source) tells it.
          - A bigger size grows it, and a running machine has it at once. A smaller one is refused.
          - An iSCSI volume is made and grown by M(drover.kvm.iscsi_volume). With the new size here, a running machine
            is told of it; one that is off finds it when it starts. The same holds for O(disks[].type=block), once
            role P(drover.kvm.san_initiator#role) has let the node see it.
          - A logical volume is rounded up to whole extents of its group. It is filled with zeroes before its machine
            gets it, and so is what is added.
        type: str
      source:
        description:
          - What a new volume starts as. It says nothing about one that is there.
          - With O(disks[].type=rbd) a protected snapshot, V(POOL/IMAGE@SNAPSHOT). The image is a clone of it.
          - With O(disks[].type=iscsi) an image on the SAN. It is for filter P(drover.kvm.iscsi_volumes#filter), which
            runs before; this module does not use it.
          - With O(disks[].type=file) a template on the node, made by M(drover.kvm.image), as an absolute path. With
            O(disks[].source_format) an image of another machine instead, or a block device of the node.
        type: path
      source_format:
        description:
          - For a new file. O(disks[].source) is no template but the disk of a physical machine or of another
            hypervisor's, in this format, and is copied, converted to O(disks[].format), and compared. It stays as it
            is.
          - The format is never guessed. An image that is something else by its first bytes, or needs other files, is
            refused. V(vpc) is what Hyper-V and others call VHD. A block device is V(raw), and nobody may use it.
          - A warning says so when the first disk can't boot with O(firmware), as its partition table says.
        type: str
        choices: [raw, qcow2, vmdk, vdi, vhdx, vpc]
      checksum:
        description:
          - With O(disks[].source_format), what the source must have, V(sha256:HEX), V(sha384:HEX) or V(sha512:HEX). It
            is read before it is copied.
        type: str
      clone:
        description:
          - How a file is made from its O(disks[].source). V(linked) is a qcow2 file that holds only what differs from
            the template; it is there at once. V(full) is a copy of its own.
          - A linked clone for which V(full) is given is flattened; as its machine runs, if it does. What it took from
            the template is copied into it, and then it is based on nothing. If the module is killed, run the task
            again. A full copy stays one, whatever is given.
          - The default for a new disk with a source is V(linked) with O(disks[].format=qcow2), else V(full).
        type: str
        choices: [linked, full]
      iqn:
        description:
          - IQN of the iSCSI target. Required for a new disk of O(disks[].type=iscsi).
        type: str
      lun:
        description:
          - Number of the logical unit.
          - The default is V(1).
        type: int
      portal:
        description:
          - Address and port of the target, such as V(10.231.5.10:3260) or V([fd00::10]:3260). Required for a new disk
            of O(disks[].type=iscsi).
        type: str
      wwid:
        description:
          - WWID that the logical unit must have (O(disks[].type=iscsi)), such as V(36001405ee27ff29e2f44851b1dc257c9),
            which is what an array calls NAA or WWN, after a V(3); RV(drover.kvm.iscsi_volume#module:volume.wwid).
          - Before each start by this module the unit is asked for it, with the machine's own initiator name and CHAP
            secret, and a start on another volume is refused, as where two LUNs of an array were exchanged. It is kept
            in the machine's metadata, so a later task needs not give it. An empty string forgets it.
        type: str
      initiator:
        description:
          - IQN with which the machine logs in.
          - The default is made from O(name), C(iqn.2026-01.org.drover:vm-NAME). It belongs to the machine and not to
            the node, so the machine can move.
        type: str
      user:
        description:
          - CHAP user, of letters, digits and C(_ + -), as libvirt takes no other. It goes with O(disks[].secret). Empty
            strings mean to log in without CHAP.
          - With O(disks[].type=rbd) the user of Ceph, without C(client.). The default is V(libvirt).
        type: str
      secret:
        description:
          - Usage name of the libvirt secret (of type C(iscsi)) with the CHAP password. Each node that runs the machine
            needs it.
          - With O(disks[].type=rbd) that of the secret (of type C(ceph)) with the user's key. The default is C(client.)
            and the user.
        type: str
      pool:
        description:
          - Pool of Ceph. Required for a new disk of O(disks[].type=rbd).
        type: str
      namespace:
        description:
          - Namespace in the pool. By default there is none.
        type: str
      image:
        description:
          - Name of the image. One that is there already is used as it is.
          - The default is C(drover-NAME-NUMBER), with the place in the list, from 0, as number.
        type: str
      monitors:
        description:
          - Addresses of the cluster's monitors, with the port unless it is 6789, such as V(10.231.5.21).
          - The default are those in C(/etc/ceph/ceph.conf) of the node, or in the first other file C(*.conf) there.
        type: list
        elements: str
      vg:
        description: Volume group. Required for a new disk of O(disks[].type=lvm).
        type: str
      lv:
        description:
          - Logical volume of O(disks[].type=lvm). One that is there already is used as it is.
          - The default is C(drover-NAME-NUMBER), with the place in the list, from 0, as number.
        type: str
      path:
        description:
          - Path of the file, in a folder that exists. It must not be one of the operating system's, nor in use by the
            node itself (swap space, a loop device).
          - With O(disks[].type=block) the device, as V(/dev/san/NAME), V(/dev/mapper/NAME) or
            V(/dev/disk/by-id/NAME); required then. V(/dev/sdb) and the like are refused, with the name to write
            instead.
          - The default for a file is C(/var/lib/libvirt/images/drover-NAME-NUMBER.FORMAT), with the place in the list,
            from 0, as number.
          - A file that is there already is used as it is. One that is based on another file is refused, unless it is a
            linked clone that was made for this machine. A template is refused; it is a O(disks[].source).
          - The medium of a drive (O(disks[].device=cdrom)) is changed at once. With an empty path the drive is empty.
            Where the guest has locked the tray, the module fails and says so.
        type: path
  nics: &nics
    description:
      - The network interfaces, exactly these, in this order. Those that are neither on a bridge
        nor in a virtual network of libvirt are left alone.
      - A NIC is found again by O(nics[].mac), else by its place in the list.
      - NICs come and go at once in a running machine. At once change also O(nics[].bridge) from one Linux bridge to
        another with the same VLAN, O(nics[].vlan), O(nics[].trunks), O(nics[].link), O(nics[].bandwidth), and on Open
        vSwitch O(nics[].anti_spoof) and O(nics[].ips). The rest counts from the next start.
      - On Open vSwitch a VLAN that belongs to the hosts is refused, alone and in a trunk, and so is a NIC without a
        VLAN, which would carry all of them. C(/etc/drover/network.json) on the node says which VLANs these are; role
        P(drover.kvm.open_vswitch#role) writes it.
    type: list
    elements: dict
    suboptions:
      bridge:
        description:
          - Name of the node's bridge, of Open vSwitch or of Linux. Required for a new NIC, unless O(nics[].network) is
            given.
        type: str
      network:
        description:
          - Name of a virtual network of libvirt, in the place of O(nics[].bridge). Each node that runs the machine
            needs it. It has no VLANs. One that plugs into a bridge of Open vSwitch is refused.
        type: str
        version_added: "0.1.0"
      vlan:
        description:
          - VLAN of the port, 1 to 4094, on a bridge of Open vSwitch, or on a Linux bridge that filters VLANs where
            libvirt is 11.0 or later. On any other Linux bridge it is refused.
          - A running machine changes to another VLAN at once. A VLAN can't be taken away yet, only replaced by
            O(nics[].trunks).
        type: int
      trunks:
        description:
          - VLANs that the port carries with their tags, 1 to 4094, on a bridge of Open vSwitch; for a machine that is a
            router or a firewall. What has no tag is not carried.
          - It doesn't go with O(nics[].vlan). A list without an item makes it a port without a VLAN.
        type: list
        elements: int
        version_added: "0.1.0"
      mac:
        description:
          - MAC address.
          - The default is C(52:54:00) and three bytes made from O(name) and the place in the list.
        type: str
      model:
        description:
          - What the guest sees. It can't be changed later.
          - The default is V(virtio).
        type: str
        choices: [virtio, e1000e, e1000, rtl8139]
      link:
        description:
          - Whether the guest sees a cable in it.
          - The default is V(up).
        type: str
        choices: [up, down]
        version_added: "0.1.0"
      mtu:
        description:
          - Largest packet, in bytes, of the port and as the guest is told; 68 to 65535. The bridge must carry it.
          - By default, and with V(0), that of the bridge.
        type: int
        version_added: "0.1.0"
      queues:
        description:
          - Number of queues of a NIC of the model V(virtio), for guests that carry more than one CPU of the node can.
          - The default is V(1).
        type: int
        version_added: "0.1.0"
      boot_order:
        description:
          - Its place among the devices from which the firmware boots, as O(disks[].boot_order) of a disk.
          - By default O(boot) says what is tried.
        type: int
        version_added: "0.1.0"
      bandwidth:
        description:
          - How much the NIC may carry, exactly this; V({}) takes all limits away. A running machine changes at once,
            and one that moves takes its limits with it.
          - A rate is a number of bits per second, or has a unit (V(10Mbit/s), V(1.5Gbit/s)). libvirt keeps kilobytes
            per second, so it goes in steps of 8 kbit/s.
          - On a bridge of Open vSwitch in user space (C(datapath_type=netdev)) the switch takes no notice of the
            limit of what the machine sends; the guard of role P(drover.kvm.open_vswitch#role) meters it there.
        type: dict
        version_added: "0.1.0"
        suboptions:
          inbound:
            description: What the machine receives.
            type: dict
            suboptions: &rates
              average:
                description: The rate in the long run.
                type: str
              peak:
                description:
                  - The highest rate. Open vSwitch heeds it for what the machine receives only.
                  - The default is the O(nics[].bandwidth.inbound.average) of the same direction.
                type: str
              burst:
                description: How much may pass at the highest rate, in bytes or with a unit such as V(256KiB).
                type: str
          outbound:
            description: What the machine sends.
            type: dict
            suboptions: *rates
      anti_spoof:
        description:
          - Whether the machine can send only from its own MAC address, can't claim others in ARP and neighbour
            discovery, and is neither a DHCP server nor a router for others.
          - On Open vSwitch the default is V(true) for a NIC with O(nics[].vlan), where the role
            P(drover.kvm.open_vswitch#role) guards the ports. A NIC without it, or with O(nics[].trunks), is not
            checked. Turn it off for machines that route, bridge, or share an address (VRRP).
          - On a Linux bridge the default is V(false). There libvirt's filter C(no-mac-spoofing), or with O(nics[].ips)
            C(clean-traffic), does it from the next start on; libvirt's nwfilter driver must be installed.
        type: bool
        version_added: "0.1.0"
      ips:
        description:
          - The only addresses that the machine may use, IPv4 and IPv6, as addresses or networks. With them nothing but
            ARP, IPv4 and IPv6 passes; link-local IPv6, DHCP and duplicate address detection stay possible.
          - A list without an item lets it use any. Needs O(nics[].anti_spoof). On a Linux bridge only single
            addresses of IPv4 can be given.
          - By default any address.
        type: list
        elements: str
        version_added: "0.1.0"
      addresses:
        description:
          - The NIC's own addresses, IPv4, IPv6 or only one of them, each with the length of its prefix, such as
            V(192.0.2.21/24) and V(2001:db8::21/64).
          - They are told to the guest by O(cloud_init), and kept in the machine's metadata. The node sets nothing, and
            a guest without cloud-init takes no notice.
        type: list
        elements: str
        version_added: "0.1.0"
      gateway:
        description:
          - The router, or one for IPv4 and one for IPv6. It must be in the network of one of O(nics[].addresses), or
            link-local such as V(fe80::1).
        type: list
        elements: str
        version_added: "0.1.0"
      nameservers:
        description: Addresses of DNS servers, in the order in which the guest asks them.
        type: list
        elements: str
        version_added: "0.1.0"
  cloud_init: &cloud_init
    description:
      - What cloud-init in the guest is given at its first boot, on a small ISO with the label C(CIDATA) in a drive of
        its own (data source NoCloud). V({}) gives it the name, the identity and the network of the machine.
      - The network is made of O(nics[].addresses), O(nics[].gateway) and O(nics[].nameservers), each NIC found by its
        MAC address. Where one NIC has addresses, NICs without them are left alone; where none has, cloud-init does
        what the image says, mostly DHCP.
      - The ISO is C(/var/lib/libvirt/images/drover-NAME-seed.iso), for root and the machine's QEMU only. The machine's
        metadata has a hash of what is in it, by which a change is seen.
      - It stays in its drive after the first boot, and later boots find it there, until O(cloud_init.remove) is set. It
        goes with O(state=absent), with or without O(remove_disks). Without this option everything stays as it is.
      - What is changed here reaches the guest at its next start, and only when cloud-init takes it for another machine,
        that is with a new O(cloud_init.instance_id).
      - A guest that was set up in another way, and has cloud-init, is set up afresh at its next start when this is
        given for the first time, host keys of ssh included.
      - The drive hinders no migration. Where the ISO is missing, libvirt starts the machine with an empty drive; a
        running guest has read it. Module M(drover.kvm.migrate) deletes the ISO on the node that the machine left, and
        this module makes it again for a machine that is off.
    type: dict
    version_added: "0.1.0"
    suboptions:
      user_data:
        description:
          - Text with a header that cloud-init knows, such as C(#cloud-config) or C(#!/bin/sh).
          - It is not shown in results, differences and logs. The guest keeps it readable for its root; passwords in it
            are better hashed.
        type: str
      hostname:
        description:
          - Name that the guest gives itself.
          - The default is O(name).
        type: str
      instance_id:
        description:
          - By it cloud-init knows whether it has been in this guest before. Another one makes it start afresh, new host
            keys of ssh included.
          - The default is the UUID of the machine.
        type: str
      remove:
        description:
          - V(true) says that the guest is set up. The ISO is taken out of its drive, at once where the machine runs,
            and deleted, with the passwords that are in it. What else is given here counts when this is V(false) again.
          - Some images look for the ISO at each boot, see docs/network.md of the collection.
          - It is refused for a new machine, which would never be set up.
          - The default is V(false).
        type: bool
  tags: &tags
    description:
      - Words kept with the machine, by which it can be chosen and placed.
      - A list means exactly these; a dictionary with V(add), V(remove) or V(set) changes the present ones.
    type: raw
  autostart: &autostart
    description:
      - Whether it starts with the node.
      - The default for a new machine is V(false).
    type: bool
  force: &force
    description:
      - With O(state=stopped), O(state=restarted) or O(state=absent), cut the power of a machine that runs. The guest is
        not asked, and data that it has not written yet is lost.
      - The default is V(false).
    type: bool
  restart: &restart
    description:
      - What may be done for changes of a machine that runs which count from its next start only.
      - With V(never) they stay in its definition and are told in RV(pending_restart), on every run.
      - With V(allowed) and O(state=running), the guest is asked to shut down and the machine is started again, when
        something is in RV(pending_restart) after all that can be done at once. The peers are asked before the guest is.
        When it does not shut down within O(shutdown_timeout), the module fails and the machine goes on as it was.
      - The default is V(never).
    type: str
    choices: [never, allowed]
    version_added: "0.1.0"
  shutdown_timeout: &shutdown_timeout
    description:
      - How long to wait for the guest to shut down, in seconds. When they are over, the module fails and the machine
        stays as it is.
      - The default is V(180).
    type: int
  remove_disks: &remove_disks
    description:
      - With O(state=absent), also delete the files of its disks, after the definition is gone. Images of Ceph that
        nobody has open are moved to the trash of their pool, from where C(rbd trash restore) brings them back.
      - Only what this module made is deleted (it carries the UUID in the extended attribute C(user.drover.vm), or in
        the image's metadata C(drover.vm)), and only what no other machine has, here or on a peer. Never a template, an
        ISO, or a file that others are based on. RV(kept) names what stays.
      - Volumes of a SAN are removed with M(drover.kvm.iscsi_volume).
      - The default is V(false).
    type: bool
  fenced: &fenced
    description:
      - Peers that are certainly powered off, by their names in the cluster. A machine is not started, and does not lose
        its disks, while a peer gives no answer, as it may run there; these peers are not waited for.
      - B(Danger:) when one of them does run the machine, two copies write to the same disks and destroy them.
      - The default is the empty list.
    type: list
    elements: str
  vms:
    description:
      - Many machines at once; each inherits the options that are given beside the list.
      - All are checked before the first is changed. A machine that fails does not keep the others from being finished.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the machine. Required.
        type: str
      state: *state
      uuid: *uuid
      memory: *memory
      max_memory: *max_memory
      min_memory: *min_memory
      hugepages: *hugepages
      nosharepages: *nosharepages
      vcpus: *vcpus
      max_vcpus: *max_vcpus
      cpu: *cpu
      cpu_features: *cpu_features
      cpu_topology: *cpu_topology
      cpu_shares: *cpu_shares
      cpu_quota: *cpu_quota
      virt_type: *virt_type
      machine: *machine
      firmware: *firmware
      secure_boot: *secure_boot
      tpm: *tpm
      boot: *boot
      clock: *clock
      timers: *timers
      agent: *agent
      rng: *rng
      watchdog: *watchdog
      console_log: *console_log
      graphics: *graphics
      video: *video
      hostdevs: *hostdevs
      filesystems: *filesystems
      title: *title
      description: *description
      owner: *owner
      rollback_safe: *rollback_safe
      on_maintenance: *on_maintenance
      disks: *disks
      nics: *nics
      cloud_init: *cloud_init
      tags: *tags
      autostart: *autostart
      force: *force
      restart: *restart
      shutdown_timeout: *shutdown_timeout
      remove_disks: *remove_disks
      fenced: *fenced
extends_documentation_fragment:
  - drover.kvm.attributes
  - drover.kvm.attributes.kvm
attributes:
  idempotent:
    support: partial
    details: All but O(state=restarted), which is an act and done on each run.
requirements:
  - libvirt 9.0 or later with QEMU, and its Python library (C(python3-libvirt))
  - C(qemu-img) for disks of type C(file)
  - C(qemu-block-extra) for disks of type C(iscsi) and C(rbd)
  - C(python3-rados) and C(python3-rbd) for disks of type C(rbd)
  - C(xorriso) or C(genisoimage) for O(cloud_init)
notes:
  - The definitions are described on U(https://libvirt.org/formatdomain.html), secrets for CHAP on
    U(https://libvirt.org/formatsecret.html), user data on
    U(https://cloudinit.readthedocs.io/en/latest/explanation/format.html).
  - Files on a file system without extended attributes can't be marked, and are never deleted.
seealso:
  - module: drover.kvm.iscsi_volume
  - module: drover.kvm.ceph_pool
  - module: drover.kvm.ceph_user
  - module: drover.kvm.migrate
  - module: drover.kvm.vm_info
  - plugin: drover.kvm.vm_sheet
    plugin_type: filter
"""

EXAMPLES = r"""
- name: A web server on the SAN
  drover.kvm.vm:
    name: web1
    state: running
    memory: 4GiB
    vcpus: 4
    disks:
      - type: iscsi
        iqn: iqn.2026-11.org.example:drover-web1-0
        portal: 10.231.5.10:3260
        user: drover
        secret: san1
    nics:
      - bridge: br-int
        vlan: 100
    tags: [web]

- name: All machines of this node from their sheets in the inventory
  drover.kvm.vm:
    state: running
    vms: "{{ groups['vms'] | map('extract', hostvars) | map('drover.kvm.vm_sheet') }}"

- name: A second disk in a file, at once, and more memory from the next start on
  drover.kvm.vm:
    name: db1
    memory: 16GiB
    disks:
      - type: file
        target: vda
      - type: file
        target: vdb
        format: qcow2
        size: 100GiB
  register: db1

- name: Memory of which the node may take half when it runs short (hypervisor_balloon_threshold)
  drover.kvm.vm:
    name: web1
    memory: 4GiB
    min_memory: 2GiB

- name: Two machines on files, each a linked clone of a template; see module image
  drover.kvm.vm:
    state: running
    memory: 2GiB
    vcpus: 2
    disks:
      - type: file
        format: qcow2
        source: /var/lib/libvirt/templates/debian-13.qcow2
        size: 40GiB
    vms: [{name: test1}, {name: test2}]

- name: Make the disk of one of them a copy of its own, as it runs
  drover.kvm.vm:
    name: test1
    disks:
      - type: file
        target: vda
        clone: full

- name: A machine of the disk of a physical one; docs/vm.md has the whole way
  drover.kvm.vm:
    name: old1
    state: running
    memory: 4GiB
    vcpus: 2
    disks:
      - type: file
        target: sda
        bus: sata
        format: qcow2
        source: /srv/p2v/old1.raw
        source_format: raw

- name: A machine on Ceph, as a clone of a template
  drover.kvm.vm:
    name: web2
    state: running
    memory: 4GiB
    vcpus: 4
    disks:
      - type: rbd
        pool: vms
        source: vms/debian-13@base
        size: 40GiB
    nics:
      - bridge: br-int
        vlan: 100

- name: A database on a volume of the SAN that the node logged in to, and one on LVM beside it
  drover.kvm.vm:
    name: db3
    state: running
    memory: 16GiB
    vcpus: 8
    disks:
      - type: block
        path: /dev/san/db3
      - type: lvm
        vg: vmdata
        size: 40GiB

- name: Restart it in the night, when something waits for that
  drover.kvm.vm:
    name: db1
    state: running
    restart: allowed
    shutdown_timeout: 600

- name: Restart it in any case
  drover.kvm.vm:
    name: db1
    state: restarted

- name: Put another medium into its drive, as it runs; with an empty path it is ejected
  drover.kvm.vm:
    name: inst1
    disks:
      - type: file
        target: vda
      - type: file
        device: cdrom
        path: /srv/iso/drivers.iso

- name: Start it here after its node died; hv2 is certainly off
  drover.kvm.vm:
    name: db1
    state: running
    fenced: [hv2]

- name: A database that shall hear of a broken disk itself, since it has copies elsewhere
  drover.kvm.vm:
    name: db2
    disks:
      - type: iscsi
        target: vda
        iqn: iqn.2026-11.org.example:drover-db2-0
        portal: 10.231.5.10:3260
        error_policy: report

- name: Move a running machine to another VLAN
  drover.kvm.vm:
    name: web1
    nics:
      - bridge: br-int
        vlan: 200

- name: A customer's machine with two addresses, 100 Mbit/s both ways
  drover.kvm.vm:
    name: shop1
    nics:
      - bridge: br-int
        vlan: 100
        ips: [192.0.2.21, "2001:db8::21"]
        bandwidth:
          inbound: {average: 100Mbit/s, burst: 256KiB}
          outbound: {average: 100Mbit/s, burst: 256KiB}

- name: Twice as much at once, as it runs
  drover.kvm.vm:
    name: shop1
    nics:
      - bandwidth:
          inbound: {average: 200Mbit/s}
          outbound: {average: 200Mbit/s}

- name: A firewall between three VLANs, which sends from addresses of others
  drover.kvm.vm:
    name: fw1
    memory: 2GiB
    vcpus: 2
    nics:
      - bridge: br-int
        trunks: [100, 200, 300]
      - bridge: br-int
        vlan: 400
        anti_spoof: false

- name: A machine with IPv6 only, set up by cloud-init at its first boot
  drover.kvm.vm:
    name: wiki1
    state: running
    memory: 2GiB
    vcpus: 2
    disks:
      - type: file
        format: qcow2
        path: /srv/vms/wiki1.qcow2
    nics:
      - bridge: br-int
        vlan: 100
        addresses: ["2001:db8:100::21/64"]
        gateway: fe80::1
        nameservers: ["2001:db8:100::53"]
    cloud_init:
      user_data: |
        #cloud-config
        disable_root: false
        ssh_authorized_keys: [{{ lookup('file', '~/.ssh/id_ed25519.pub') | to_json }}]

- name: No virtual CPU of a noisy neighbour takes more than half a CPU, at once
  drover.kvm.vm:
    name: batch1
    cpu_quota: 50

- name: Remove a machine and the files that were made for it
  drover.kvm.vm:
    name: test7
    state: absent
    force: true
    remove_disks: true

- name: Tell the guest that its array writes blocks of 4 KiB, from its next start on
  drover.kvm.vm:
    name: db1
    disks:
      - type: iscsi
        target: vda
        physical_block_size: 4KiB
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  returned: always
  type: list
  elements: str
  sample: ["define web1: 4 vCPUs, 4GiB, 1 disks, 1 NICs", "start web1"]
pending_restart:
  description:
    - What the running machine does not have yet of its definition, and for a device why it can't have it at once. It
      gets that when it is powered off and on; a reboot inside the guest is not enough.
    - With O(vms), in each item of RV(results).
  returned: always
  type: list
  elements: str
  sample: ["memory 4GiB -> 8GiB", "nic 52:54:00:30:fa:62 added: no PCI port is free"]
vm:
  description:
    - The machine as it is defined after the task, with the options of this module; null when it is absent.
    - With O(vms), in each item of RV(results).
  returned: always
  type: dict
  contains:
    name: {description: Its name., type: str, returned: always}
    state:
      description: Its power state, C(running), C(stopped), C(paused), C(in shutdown), C(crashed) or C(pmsuspended).
      type: str
      returned: always
    uuid: {description: Its UUID., type: str, returned: always}
    memory: {description: Memory in bytes., type: int, returned: always}
    max_memory: {description: The most that it can have; null if it was never given., type: int, returned: always}
    min_memory: {description: The least that it is left; null if nothing is taken., type: int, returned: always}
    hugepages: {description: True or the size in bytes; null for none., type: raw, returned: always}
    nosharepages: {description: Whether it is kept out of KSM., type: bool, returned: always}
    vcpus: {description: Number of virtual CPUs., type: int, returned: always}
    max_vcpus: {description: The most that it can have; null if it was never given., type: int, returned: always}
    cpu: {description: CPU model., type: str, returned: always}
    cpu_features: {description: Features beside those of the model., type: dict, returned: always}
    cpu_topology: {description: How its CPUs are arranged; null where nothing is said., type: dict, returned: always}
    cpu_shares: {description: Its weight; null for libvirt's default., type: int, returned: always}
    cpu_quota: {description: Per cent of a CPU that each vCPU may take; null for no limit., type: int, returned: always}
    virt_type: {description: V(kvm) or V(qemu)., type: str, returned: always}
    machine: {description: "The emulated computer, with its version.", type: str, returned: always}
    firmware: {description: V(bios) or V(efi)., type: str, returned: always}
    secure_boot: {description: Whether it starts only what is signed., type: bool, returned: always}
    tpm: {description: Version of its TPM; null without one., type: str, returned: always}
    boot: {description: From what it boots., type: list, elements: str, returned: always}
    clock: {description: V(utc) or V(localtime)., type: str, returned: always}
    timers: {description: What is said of its timers., type: dict, returned: always}
    agent: {description: Whether it has the channel of the guest agent., type: bool, returned: always}
    rng: {description: Whether it has a random number generator., type: bool, returned: always}
    watchdog: {description: Its watchdog; null without one., type: dict, returned: always}
    console_log: {description: The file with what its console says., type: str, returned: always}
    graphics: {description: Its screen; null without one., type: dict, returned: always}
    video: {description: Its graphics card; null without one., type: str, returned: always}
    hostdevs:
      description: Its PCI and USB devices of the node; null without any.
      type: list
      elements: dict
      returned: always
    filesystems: {description: Its folders of the node; null without any., type: list, elements: dict, returned: always}
    title: {description: Its title; null when it has none., type: str, returned: always}
    description: {description: One line about it., type: str, returned: always}
    owner: {description: To whom it belongs., type: str, returned: always}
    rollback_safe: {description: Whether it may be set back; null where nothing is said., type: bool, returned: always}
    on_maintenance:
      description: What becomes of it when its node is drained; null where nothing is said.
      type: str
      returned: always
    tags: {description: Its tags., type: list, elements: str, returned: always}
    autostart: {description: Whether it starts with the node., type: bool, returned: always}
    disks:
      description:
        - Its disks, with the suboptions of O(disks).
        - With O(disks), also C(size) in bytes, null where it is not known, and C(backing), the file that a disk is
          based on, so the template of a linked clone.
      type: list
      elements: dict
      returned: always
    nics: {description: Its NICs with the suboptions of O(nics)., type: list, elements: dict, returned: always}
    lease: {description: The file of its lease; null when it has none., type: str, returned: always}
    seed:
      description:
        - C(digest), the hash of what O(cloud_init) gave the guest last, and C(medium), the path of the ISO, null when
          somebody took it out of the drive. Null where nothing was given.
      type: dict
      returned: always
kept:
  description:
    - What the disks of a machine that is removed lie on and what stays, such as ISOs, disks that were not made by this
      module, and, without O(remove_disks), all of them.
    - With O(vms), in each item of RV(results).
  returned: always
  type: list
  elements: str
  sample: ["/srv/iso/debian-13.iso"]
results:
  description: One item per machine, with RV(vm), RV(pending_restart), RV(kept), RV(actions) and C(changed).
  returned: when O(vms) is given
  type: list
  elements: dict
error:
  description:
    - The kind of failure. C(Invalid) for wrong options, C(Refused) for what would lose something, and C(Failed),
      C(TimedOut), C(Unreachable), C(NotFound) or C(NotConverged) for what went wrong.
  returned: failure
  type: str
completed:
  description: The machines that were finished although another one failed.
  returned: failure with O(vms)
  type: list
  elements: str
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ansible_collections.drover.kvm.plugins.module_utils._disks.plan import Change
from ansible_collections.drover.kvm.plugins.module_utils._domain import (
    changing,
    cloud_init,
    leasing,
    power,
    removal,
    starting,
)
from ansible_collections.drover.kvm.plugins.module_utils._domain.admission import Admission
from ansible_collections.drover.kvm.plugins.module_utils._domain.disks import DISKS
from ansible_collections.drover.kvm.plugins.module_utils._domain.draft import Draft
from ansible_collections.drover.kvm.plugins.module_utils._domain.hardware import HARDWARE, check_seconds, check_tags
from ansible_collections.drover.kvm.plugins.module_utils._domain.neighbours import claims_of
from ansible_collections.drover.kvm.plugins.module_utils._domain.nics import NICS
from ansible_collections.drover.kvm.plugins.module_utils._domain.site import Site, opened
from ansible_collections.drover.kvm.plugins.module_utils._fields import Field, check_vm_name
from ansible_collections.drover.kvm.plugins.module_utils._libvirt import connect
from ansible_collections.drover.kvm.plugins.module_utils._resource import Resource, State, Step, run_module

STATES = ("present", "running", "paused", "restarted", "stopped", "absent")
FIELDS = (
    Field("name", required=True, check=check_vm_name),
    Field("state", choices=STATES, default="present"),
    *HARDWARE,
    Field("disks", type="list", elements="dict", fields=DISKS, when="live"),
    Field("nics", type="list", elements="dict", fields=NICS, when="live"),
    Field("tags", type="names", check=check_tags, when="live"),
    Field("cloud_init", type="dict", fields=cloud_init.FIELDS),
    Field("autostart", type="bool", when="unseen"),
    Field("force", type="bool", default=False),
    Field("restart", choices=("never", "allowed"), default="never"),
    Field("shutdown_timeout", type="int", default=180, check=check_seconds),
    Field("remove_disks", type="bool", default=False),
    Field("fenced", type="list", elements="str", default=[]),
)


class Vm(Resource):
    """One VM on this node."""

    def __init__(self, params: dict[str, Any], client: Site) -> None:
        super().__init__(params, client)
        self.site = client
        self.admission = Admission(client, self.name, params["fenced"])
        self.planned = False
        self.kept: list[str] = []

    @classmethod
    def connect(cls, params: Mapping[str, Any]) -> AbstractContextManager[Site]:
        """The node, and through it its peers."""
        return opened(connect())

    def read(self) -> State:
        """The VM's sheet, power state, and what waits for the next start; or the volumes that it left."""
        self.domain = self.site.domain(self.name)
        self.draft = Draft(self.params, self.site, self.domain)
        if self.draft.before is not None and self.domain is not None:
            return self.draft.state(self.draft.before, self.domain.state, self.domain.autostart)
        volumes = [one.name for _store, one in removal.volumes(self.draft, self.admission)] + self.draft.left()
        return {"name": self.name, "state": "absent", "volumes": volumes} if volumes else None

    def wanted(self, before: State) -> State:
        """The definition edited in place. Asks the node and its peers whether it may be, and may start."""
        act = power.act(self.draft.facts, self.params["state"], self.params["force"])
        if self.params["state"] == "absent":
            self.draft.act = act
            return None
        state = self.draft.edit(act)
        held = claims_of(self.draft.after)
        if not self.planned:
            old = set() if self.draft.before is None else claims_of(self.draft.before)
            self.admission.definition(old, held, state["uuid"], new=self.domain is None)
            starting.admit(self.draft.act, self.admission, self.draft)
            changing.admit(self.admission, self.draft)
            self.admission.plan(held, runs=state["state"] != power.STOPPED)
            fault = leasing.fault(self.site.leases, self.domain)
            self.warnings += [f"{fault}: drain this node, then restart virtlockd"] if fault else []
            self.warnings += self.draft.doubts(state)
            self.planned = True
        return state

    def steps(self, before: State, wanted: State) -> list[Step]:
        """Power off, volumes, definition, live changes, power on; or the removal. A restart comes after the changes."""
        draft, act = self.draft, self.draft.act
        off = starting.power_off(act, self.admission, draft)
        if wanted is None:
            self.kept = self.kept or removal.kept(draft, self.admission)
            steps = off + removal.steps(draft, self.admission)
        else:
            edits = draft.ahead + self._make_volumes() + changing.ahead(draft) + self._define(wanted)
            live, on = changing.steps(self.admission, draft), starting.steps(act, self.admission, draft)
            steps = edits + off if act == "restart" else off + edits
            steps += on + live if act == "resume" else live + on
        if steps and draft.facts:
            power.guard(draft.facts)
        if self.params["state"] == "restarted":
            # It is an act, done once; after it the machine runs.
            self.params = {**self.params, "state": "running"}
        return steps

    def result(self, state: State) -> dict[str, Any]:
        """The VM, what waits for its next start, and what stays of one that goes."""
        vm = None if state is None or state["state"] == "absent" else dict(state)
        return {"vm": vm, "pending_restart": vm.pop("pending_restart") if vm else [], "kept": self.kept}

    def _make_volumes(self) -> list[Step]:
        return [Step(change.words, partial(self._make_volume, change)) for change in self.draft.volumes]

    def _make_volume(self, change: Change) -> None:
        if not change.apply(self.draft.uuid, partial(self.site.node.block_resize, self.name)):
            self.warnings.append(f"{change.name} could not be marked as ours; remove_disks will not remove it")

    def _define(self, wanted: Mapping[str, Any]) -> list[Step]:
        node, steps = self.site.node, []
        if self.draft.redefined:
            steps.append(Step(self.draft.words(), self.draft.define))
        if wanted["autostart"] != (self.domain is not None and self.domain.autostart):
            words = f"{'start' if wanted['autostart'] else 'do not start'} {self.name} with the node"
            steps.append(Step(words, partial(node.set_autostart, self.name, wanted["autostart"])))
        return steps


def main() -> None:
    """Run the module."""
    run_module(Vm, FIELDS, items="vms", required_one_of=[("name", "vms")], mutually_exclusive=[("name", "vms")])


if __name__ == "__main__":
    main()
