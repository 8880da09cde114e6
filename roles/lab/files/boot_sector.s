# Copyright: the drover.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The smallest witness: a boot sector that counts twice a second. It writes its counter to sector 16 of its
# disk ("DRVT", then 32 bits) by the BIOS and prints "t" (or "E" when the write failed) and the counter in
# hexadecimal on the first serial port. It needs no operating system and 16 MiB of memory.
#   as --32 -o boot_sector.o boot_sector.s
#   ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o boot_sector.img boot_sector.o

        .code16
        .globl  _start
        .set    BUFFER, 0x8000
        .set    TICKS, 0x46c            # the BIOS's clock, 18.2 a second
        .set    COM1, 0x3f8

_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $_start, %sp
        sti
        cld
        movb    %dl, drive

        movw    $COM1 + 3, %dx          # 115200 baud, 8 bits, no parity
        movb    $0x80, %al
        outb    %al, %dx
        movw    $COM1, %dx
        movb    $1, %al
        outb    %al, %dx
        incw    %dx
        xorb    %al, %al
        outb    %al, %dx
        movw    $COM1 + 3, %dx
        movb    $3, %al
        outb    %al, %dx

        movw    $read, %si              # go on from the disk's counter, if there is one
        movw    $0x4200, %ax
        movb    drive, %dl
        int     $0x13
        cmpl    $0x54565244, BUFFER     # "DRVT"
        jne     count
        movl    BUFFER + 4, %eax
        movl    %eax, counter

count:  incl    counter
        movl    counter, %eax
        movl    $0x54565244, BUFFER
        movl    %eax, BUFFER + 4
        movw    $read, %si              # the same packet serves to write
        movw    $0x4300, %ax
        movb    drive, %dl
        int     $0x13
        movb    $'t', %al
        jnc     print
        movb    $'E', %al
print:  call    putc
        movl    counter, %eax
        movw    $8, %cx
digit:  roll    $4, %eax
        pushl   %eax
        andb    $0xf, %al
        cmpb    $10, %al
        jb      decimal
        addb    $'a' - '0' - 10, %al
decimal:
        addb    $'0', %al
        call    putc
        popl    %eax
        loop    digit
        movb    $'\n', %al
        call    putc

        movw    TICKS, %bx
        addw    $9, %bx
rest:   hlt
        movw    TICKS, %ax
        subw    %bx, %ax
        js      rest
        jmp     count

putc:   pushw   %ax
        movw    $COM1 + 5, %dx
busy:   inb     %dx, %al
        testb   $0x20, %al
        jz      busy
        popw    %ax
        movw    $COM1, %dx
        outb    %al, %dx
        ret

drive:  .byte   0
        .balign 4
counter:
        .long   0
read:   .byte   0x10, 0                 # disk address packet: one sector at BUFFER
        .word   1
        .word   BUFFER, 0
        .quad   16
        .org    510
        .word   0xaa55
