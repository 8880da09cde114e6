# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# A boot sector that loads a Linux kernel from fixed places of the disk. Under emulation it is ten seconds of
# processor time quicker than a general boot loader. The image's builder writes the table of parts (where on
# the disk, how many sectors, where in memory) and has filled in the kernel's header, so nothing is decided here.
# The kernel's real-mode code lies at 0x80000, its command line at 0x8e000.

        .code16
        .globl  _start
        .set    BOUNCE_SEGMENT, 0x1000  # the BIOS reads here, below 1 MiB; from here the parts go where they belong
        .set    BOUNCE, 0x10000
        .set    MOST, 127               # sectors that fit the BIOS's way to count

_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $_start, %sp
        sti
        cld
        movb    %dl, drive

        movw    $parts, %bp
part:   cmpl    $0, 4(%bp)
        je      next
        movl    $MOST, %ecx
        cmpl    %ecx, 4(%bp)
        jae     read
        movl    4(%bp), %ecx
read:   movw    %cx, packet + 2
        movl    (%bp), %eax
        movl    %eax, packet + 8
        pushl   %ecx
        movw    $packet, %si
        movb    $0x42, %ah
        movb    drive, %dl
        int     $0x13
        popl    %ecx
        jc      failed
        addl    %ecx, (%bp)
        subl    %ecx, 4(%bp)

        # The BIOS has set its own segment limits: each time, reach all of memory again by way of protected mode.
        cli
        lgdt    table
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        movw    $8, %bx
        movw    %bx, %ds
        movw    %bx, %es
        andb    $0xfe, %al
        movl    %eax, %cr0
        xorw    %bx, %bx
        movw    %bx, %ds
        movw    %bx, %es
        movl    $BOUNCE, %esi
        movl    8(%bp), %edi
        shll    $7, %ecx                # sectors to double words
        addr32 rep movsl
        movl    %edi, 8(%bp)
        sti
        jmp     part
next:   addw    $12, %bp
        cmpw    $parts_end, %bp
        jne     part

        cli
        movw    $0x8000, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movw    %ax, %ss
        movw    $0xe000, %sp
        ljmp    $0x8020, $0

failed: movw    $0x0e45, %ax            # "E" on the screen
        int     $0x10
halt:   hlt
        jmp     halt

drive:  .byte   0
        .balign 8
packet: .byte   0x10, 0
        .word   0
        .word   0, BOUNCE_SEGMENT
        .quad   0
table:  .word   15                      # the limit and place of the table, which begins 8 bytes before its first entry
        .long   entries
        .word   0
        .balign 8
entries:
        .quad   0
        .quad   0x00cf92000000ffff      # data, from 0 to 4 GiB
        .org    440 - 48
parts:  .fill   12, 4, 0                # four parts: sector, sectors, address; written by the image's builder
parts_end:
        .org    510
        .word   0xaa55
