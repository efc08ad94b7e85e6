/*
 * The boot loader of bootstrap.iso: from the BIOS to Linux.
 *
 * A BIOS loads these 2048 bytes from the CD to 0x7c00 and jumps to them in
 * real mode with the drive's number in DL ("El Torito" 1.0, section 3: no
 * emulation). The block "params" below, which package bootiso fills in, tells
 * where on the CD the kernel, the initial RAM disk and the command line are;
 * they are read by the BIOS's extended read (INT 13h AH=42h, EDD 3.0) and
 * handed over as the Linux boot protocol says (Documentation/x86/boot.rst;
 * "boot.rst" below). There is no menu, no file system and no configuration.
 *
 * What it takes for granted, because every machine that vic runs on has it:
 * a 386's 32 bits or better, INT 15h AX=E820h, and a kernel of protocol 2.10
 * (Linux 2.6.31) or later that is loaded high.
 *
 * Copies above 1 MiB are made in protected mode, entered for the time of one
 * copy with interrupts off. INT 15h AH=87h would do the same, but as well as
 * the BIOS at hand does it (LILO and others have lists of those that cannot
 * reach beyond 16 or 64 MiB); unreal mode lasts only until a BIOS call loads a
 * segment register in protected mode.
 *
 * An error is told on the screen and on COM1, and then the machine idles. It
 * does not start over: it would read the same CD with the same end, for ever
 * and at full load, and scroll the message away.
 *
 * Memory:
 *	0x07c00  this; the stack is below, variables behind
 *	0x10000  the kernel's real-mode code, at most 32 KiB
 *	0x18000  its heap and stack, up to 0x1e000
 *	0x1e000  the command line, at most 2 KiB
 *	0x20000  32 KiB on their way from the CD to their place
 *	0x100000 the kernel's protected-mode code
 *	top      the initial RAM disk, as high as the kernel lets it be
 *
 * Assembled by: as --32, ld -m elf_i386 -Ttext 0x7c00, objcopy -O binary; see
 * loader_test.go.
 */

	.set	SECTOR, 2048
	.set	CHUNK, 32768		/* bytes that one read asks for */
	.set	TRIES, 6		/* of each read */
	.set	SETUP, 0x10000		/* linear */
	.set	SETUP_SEG, 0x1000
	.set	SETUP_MAX, 0x8000
	.set	HEAP_END, 0xe000	/* in SETUP_SEG; the command line is there */
	.set	BUFFER, 0x20000
	.set	BUFFER_SEG, 0x2000
	.set	HIGH, 0x100000
	.set	COM1, 0x3f8
	.set	SMAP, 0x534d4150	/* of INT 15h AX=E820h */

	/* Fields of the kernel's header, in SETUP_SEG ("boot.rst", The
	   Real-Mode Kernel Header). */
	.set	hdr_setup_sects, 0x1f1
	.set	hdr_vid_mode, 0x1fa
	.set	hdr_magic, 0x202
	.set	hdr_version, 0x206
	.set	hdr_type_of_loader, 0x210
	.set	hdr_loadflags, 0x211
	.set	hdr_ramdisk_image, 0x218
	.set	hdr_ramdisk_size, 0x21c
	.set	hdr_heap_end_ptr, 0x224
	.set	hdr_cmd_line_ptr, 0x228
	.set	hdr_initrd_addr_max, 0x22c
	.set	hdr_pref_address, 0x258
	.set	hdr_init_size, 0x260

	.code16
	.text
	.globl	_start
_start:
	ljmp	$0, $main		/* some BIOSes say 07c0:0000 */

/*
 * The parameters. bootiso/loader/loader.go has the same layout. Behind byte 64,
 * because mkisofs and its like may write into 8 to 63 (-boot-info-table).
 */
	.org	64
params:	.ascii	"VIC-BOOT"
	.long	1			/* version of this block */
kernel_lba:	.long	0		/* sectors of 2048 bytes from the CD's start */
kernel_size:	.long	0		/* bytes */
initrd_lba:	.long	0
initrd_size:	.long	0
cmdline_lba:	.long	0
cmdline_size:	.long	0		/* bytes, at most 2047, without a NUL */

main:
	cli
	cld
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$0x7c00, %sp
	sti
	movb	%dl, drive
	call	enable_a20

/* The kernel's first 32 KiB: its real-mode code, and what follows that. */
	movl	kernel_lba, %eax
	movl	kernel_size, %ecx
	cmpl	$CHUNK, %ecx
	jbe	1f
	movl	$CHUNK, %ecx
1:	movw	$SETUP_SEG, %bx
	movw	%bx, %fs		/* FS stays so: the header's segment */
	call	read

	movw	$msg_kernel, %si
	cmpl	$0x53726448, %fs:hdr_magic	/* "HdrS" */
	jne	fail
	cmpw	$0x020a, %fs:hdr_version
	jb	fail
	testb	$1, %fs:hdr_loadflags		/* LOADED_HIGH */
	jz	fail
	movzbl	%fs:hdr_setup_sects, %edx
	testb	%dl, %dl
	jnz	1f
	movb	$4, %dl			/* "for backwards compatibility" */
1:	incw	%dx			/* the boot sector itself */
	shll	$9, %edx
	cmpl	$SETUP_MAX, %edx
	ja	fail
	cmpl	%edx, %ecx		/* nothing behind it? */
	jbe	fail

/* What follows goes above 1 MiB, and the rest of the kernel behind it. */
	subl	%edx, %ecx
	leal	SETUP(%edx), %esi
	movl	$HIGH, %edi
	call	copy
	movl	kernel_size, %ecx
	subl	$CHUNK, %ecx
	jbe	1f
	movl	kernel_lba, %eax
	addl	$CHUNK/SECTOR, %eax
	call	load

/* The RAM disk. */
1:	call	place
	movl	%edi, %fs:hdr_ramdisk_image
	movl	initrd_lba, %eax
	movl	initrd_size, %ecx
	movl	%ecx, %fs:hdr_ramdisk_size
	call	load

/* The command line, with a NUL behind it. */
	movl	cmdline_lba, %eax
	movl	cmdline_size, %ecx
	movw	$SETUP_SEG + HEAP_END/16, %bx
	call	read
	movw	cmdline_size, %di
	movb	$0, %fs:HEAP_END(%di)
	movl	$SETUP + HEAP_END, %fs:hdr_cmd_line_ptr

	movb	$0xff, %fs:hdr_type_of_loader	/* one without a number */
	orb	$0x80, %fs:hdr_loadflags	/* CAN_USE_HEAP */
	movw	$HEAP_END - 0x200, %fs:hdr_heap_end_ptr
	movw	$0xffff, %fs:hdr_vid_mode	/* "normal" */

/* "boot.rst", Running the Kernel. */
	cli
	movw	$SETUP_SEG, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %fs
	movw	%ax, %gs
	movw	%ax, %ss
	movw	$HEAP_END, %sp
	ljmp	$SETUP_SEG + 0x20, $0

/*
 * place finds the RAM disk's place: EDI is the highest page from which
 * initrd_size bytes are usable memory, below 4 GiB and the kernel's
 * initrd_addr_max, and above all that the kernel overwrites while it unpacks
 * itself: it runs at pref_address or where it was loaded, whichever is higher,
 * and needs init_size bytes there ("boot.rst", init_size).
 */
place:
	xorl	%edi, %edi		/* none yet */
	movl	%fs:hdr_initrd_addr_max, %eax
	andl	$~4095, %eax
	movl	%eax, ceiling
	movl	%fs:hdr_pref_address, %eax
	cmpl	$HIGH, %eax
	jae	1f
	movl	$HIGH, %eax
1:	addl	%fs:hdr_init_size, %eax
	jc	3f			/* beyond 4 GiB */
	movl	%eax, floor

	xorl	%ebx, %ebx		/* the BIOS's mark in its list */
2:	movl	$0xe820, %eax
	movl	$SMAP, %edx
	movl	$20, %ecx
	pushl	%edi
	pushw	%fs
	movw	$range, %di
	int	$0x15
	popw	%fs
	popl	%edi
	jc	3f			/* past the end, or no such function */
	cmpl	$SMAP, %eax
	jne	3f
	cmpl	$1, range_type		/* usable */
	jne	5f
	cmpl	$0, range_base + 4	/* above 4 GiB */
	jne	5f
	movl	range_base, %ecx
	movl	%ecx, %eax
	addl	range_size, %eax
	jc	6f
	cmpl	$0, range_size + 4
	jne	6f
	cmpl	ceiling, %eax		/* EAX: its end */
	jb	7f
6:	movl	ceiling, %eax
7:	andl	$~4095, %eax		/* all of the last sector is written, and */
	subl	initrd_size, %eax	/* it is no more than the last page */
	jb	5f
	andl	$~4095, %eax
	cmpl	%ecx, %eax
	jb	5f
	cmpl	floor, %eax
	jb	5f
	cmpl	%edi, %eax
	jbe	5f
	movl	%eax, %edi
5:	testl	%ebx, %ebx
	jnz	2b
3:	movw	$msg_memory, %si
	testl	%edi, %edi
	jz	fail
	ret

/* load reads ECX bytes from sector EAX on to the linear address EDI. */
load:
	movl	%ecx, %edx		/* left */
1:	testl	%edx, %edx
	jz	2f
	movl	%edx, %ecx
	cmpl	$CHUNK, %ecx
	jbe	3f
	movl	$CHUNK, %ecx
3:	movw	$BUFFER_SEG, %bx
	call	read
	movl	$BUFFER, %esi
	subl	%ecx, %edx
	call	copy
	addl	$CHUNK/SECTOR, %eax
	jmp	1b
2:	ret

/* read reads ECX bytes, at most CHUNK, from sector EAX on to BX:0. It changes
   no register but the flags. */
read:
	pushal
	movl	%eax, dap_lba
	movw	%bx, dap_seg
	addw	$SECTOR - 1, %cx
	shrw	$11, %cx
	jz	2f
	movw	$TRIES, %di
1:	movw	%cx, dap_count		/* the BIOS may have changed it */
	pushal
	pushw	%ds
	pushw	%es
	pushw	%fs
	movb	$0x42, %ah
	movb	drive, %dl
	movw	$dap, %si
	int	$0x13
	popw	%fs
	popw	%es
	popw	%ds
	movb	%ah, status
	popal
	jnc	2f
	pushal
	xorw	%ax, %ax		/* reset the drive */
	movb	drive, %dl
	int	$0x13
	popal
	decw	%di
	jnz	1b
	movw	$msg_read, %si
	movl	dap_lba, %eax		/* tell where and what */
	movw	$msg_read_lba, %di
	movw	$8, %cx
	call	hex
	movl	status, %eax
	movw	$msg_read_status, %di
	movw	$2, %cx
	call	hex
	jmp	fail
2:	popal
	ret

/* hex writes the last CX hexadecimal digits of EAX to DI. */
hex:
	addw	%cx, %di
1:	decw	%di
	movb	%al, %dl
	andb	$15, %dl
	addb	$'0', %dl
	cmpb	$'9', %dl
	jbe	2f
	addb	$'a' - '9' - 1, %dl
2:	movb	%dl, (%di)
	shrl	$4, %eax
	loop	1b
	ret

/*
 * copy copies ECX bytes, rounded up to a multiple of four, from the linear
 * address ESI to EDI, which it advances.
 */
copy:
	pushl	%eax
	addl	$3, %ecx
	shrl	$2, %ecx
	cli
	lgdtl	gdtr
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmp	$8, $1f
1:	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	rep movsl (%esi), %es:(%edi)
	movw	$24, %ax		/* the limits that real mode needs */
	movw	%ax, %ds
	movw	%ax, %es
	movl	%cr0, %eax
	andb	$~1, %al
	movl	%eax, %cr0
	ljmp	$0, $2f
2:	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	sti
	popl	%eax
	ret

/*
 * enable_a20 makes address line 20 work, by the BIOS or by the chip set's port
 * 92h. Virtual machines have it on from the start; the way by the keyboard
 * controller is for machines that vic does not run on.
 */
enable_a20:
	call	a20
	jne	1f
	movw	$0x2401, %ax
	int	$0x15
	call	a20
	jne	1f
	inb	$0x92, %al
	orb	$2, %al
	andb	$~1, %al		/* not a reset */
	outb	%al, $0x92
	call	a20
	movw	$msg_a20, %si
	je	fail
1:	ret

/* a20 compares a word with what is 1 MiB above it, for two of its values; "not
   equal" means that the line is on. */
a20:
	movw	$0xffff, %ax
	movw	%ax, %gs
	incw	probe
	movw	probe, %ax
	cmpw	%gs:probe + 16, %ax
	jne	1f
	incw	probe
	movw	probe, %ax
	cmpw	%gs:probe + 16, %ax
1:	ret

/* fail tells what SI says, on COM1 and on the screen, and stops. COM1 gets
   115200 baud, 8N1, as the kernel's command line has it. */
fail:
	movw	$COM1 + 3, %dx
	movb	$0x83, %al		/* 8N1, divisor latch */
	outb	%al, %dx
	movw	$COM1, %dx
	movw	$1, %ax			/* 115200 */
	outw	%ax, %dx
	movw	$COM1 + 3, %dx
	movb	$3, %al
	outb	%al, %dx
	movw	$serial, %di
	call	tell
	movw	$screen, %di
	call	tell
1:	sti				/* not cli: a virtual machine would be reported dead */
	hlt
	jmp	1b

/* tell writes the message SI by the routine DI. */
tell:
	pushw	%si
	pushw	%si
	movw	$msg_vic, %si
	call	1f
	popw	%si
	call	1f
	movw	$msg_end, %si
	call	1f
	popw	%si
	ret
1:	lodsb
	testb	%al, %al
	jz	2f
	pushal
	call	*%di
	popal
	jmp	1b
2:	ret

/* serial writes AL to COM1, after a while even where nobody takes it. */
serial:
	movb	%al, %bl
	movw	$COM1 + 5, %dx
	xorw	%cx, %cx
1:	inb	%dx, %al
	testb	$0x20, %al		/* transmitter ready */
	loopz	1b
	movb	%bl, %al
	movw	$COM1, %dx
	outb	%al, %dx
	ret

/* screen writes AL to the screen. */
screen:
	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	ret

	.balign	8
gdt:	.quad	0
	.quad	0x00009a000000ffff	/*  8: 16-bit code, 64 KiB from 0 */
	.quad	0x00cf92000000ffff	/* 16: data, 4 GiB from 0 */
	.quad	0x000092000000ffff	/* 24: data, 64 KiB from 0 */
gdtr:	.word	gdtr - gdt - 1
	.long	gdt

	.balign	4
dap:	.byte	16, 0			/* disk address packet */
dap_count:	.word	0
	.word	0
dap_seg:	.word	0
dap_lba:	.long	0, 0

status:	.long	0
probe:	.word	0
drive:	.byte	0

msg_vic:	.asciz	"\r\nvic boot: "
msg_kernel:	.asciz	"the kernel is no bzImage of boot protocol 2.10 or later"
msg_memory:	.asciz	"not enough memory for kernel and initrd below 4 GiB"
msg_a20:	.asciz	"address line 20 stays off"
msg_read:	.ascii	"cannot read sector 0x"
msg_read_lba:	.ascii	"00000000 of the CD, BIOS status 0x"
msg_read_status:	.asciz	"00"
msg_end:	.asciz	". Stopped.\r\n"

	.org	SECTOR			/* assembly fails where there is more */

/* Variables behind what was loaded. */
	.set	range, 0x7c00 + SECTOR
	.set	range_base, range
	.set	range_size, range + 8
	.set	range_type, range + 16
	.set	ceiling, range + 32
	.set	floor, range + 36
