/* Copyright: the drover.kvm contributors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The whole user space of the lab's tiny guest: process 1, linked statically.
 *
 * Each period it adds one to a counter, writes the record
 *     DROVER1 <boot id> <counter> <monotonic ms> <failed writes> <name>
 * to its disk (O_DIRECT, O_DSYNC), and only then sends the same text as a UDP datagram. So every counter that
 * an observer has received is on the disk; after a boot it goes on from the disk's, so that a lost write, a
 * second running copy or a disk put back are seen as a counter that goes back.
 *
 * Settings (kernel command line, else the text block on the disk; the command line wins):
 *     drover.name=web1 drover.ip=10.231.100.21/24 drover.sink=10.231.100.1:9000
 *     drover.period=MS    between two words; 100 unless given
 *     drover.dirty=MiB    memory that is written all the time
 *     drover.canary=TEXT  a text that fills 4 MiB of memory (to look for where memory must not go)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DISK "/dev/vda"
#define MAGIC "DROVER-GUEST 1\n"
#define CONFIG_OFFSET 4096
#define CONFIG_SIZE 4096
#define RECORD_OFFSET 8192
#define RECORD_SIZE 512
#define EXTRA_OFFSET (20 << 20)
#define EXTRA_MAX (12 << 20)
#define PERIOD_MS 100
#define AGENT_PORT "org.qemu.guest_agent.0"

static char config[2 * CONFIG_SIZE];
static char *sector;

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void sleep_ms(long ms)
{
    struct timespec rest = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&rest, NULL);
}

/* Read a small file as text; "" when it cannot be read. */
static void slurp(const char *path, char *text, size_t size)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = file < 0 ? 0 : read(file, text, size - 1);
    text[got > 0 ? got : 0] = 0;
    if (file >= 0)
        close(file);
}

/* The value of the first word NAME=value of the settings; an empty string when there is none. */
static const char *setting(const char *name, char *value, size_t size)
{
    size_t length = strlen(name);
    value[0] = 0;
    for (const char *word = config; *word; word += strcspn(word, " \n")) {
        word += strspn(word, " \n");
        if (!strncmp(word, name, length) && word[length] == '=') {
            snprintf(value, size, "%.*s", (int)strcspn(word + length + 1, " \n"), word + length + 1);
            break;
        }
    }
    return value;
}

static void load_modules(const char *list)
{
    char names[1024], path[128];
    slurp(list, names, sizeof names);
    for (char *name = strtok(names, "\n"); name; name = strtok(NULL, "\n")) {
        snprintf(path, sizeof path, "/modules/%s", name);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0 || syscall(SYS_finit_module, file, "", 0))
            printf("drover: module %s: %s\n", name, strerror(errno));
        if (file >= 0)
            close(file);
    }
}

/* Wait for a device that the kernel makes on its own time; 0 when it did not come. */
static int appears(const char *path, long ms)
{
    for (long end = now_ms() + ms; access(path, F_OK); sleep_ms(5))
        if (now_ms() > end)
            return 0;
    return 1;
}

/* Open the disk if it is ours to write: marked as such, or named to us on the kernel's command line. */
static int open_disk(int told)
{
    if (!appears(DISK, 3000))
        return -1;
    int disk = open(DISK, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
    char *block = aligned_alloc(4096, CONFIG_SIZE);
    if (disk < 0 || pread(disk, block, CONFIG_SIZE, CONFIG_OFFSET) != CONFIG_SIZE)
        return -1;
    int marked = !strncmp(block, MAGIC, strlen(MAGIC));
    if (marked)
        strncat(config, block + strlen(MAGIC), CONFIG_SIZE - strlen(MAGIC) - 1);
    free(block);
    if (!marked && !told) {
        printf("drover: the disk has no mark of the lab: it is left alone\n");
        close(disk);
        return -1;
    }
    return disk;
}

/* The counter of the last record on the disk; 0 when there is none. */
static unsigned long last_counter(int disk)
{
    unsigned long counter = 0;
    if (disk >= 0 && pread(disk, sector, RECORD_SIZE, RECORD_OFFSET) == RECORD_SIZE) {
        sector[RECORD_SIZE - 1] = 0;
        sscanf(sector, "DROVER1 %*s %lu", &counter);
    }
    return counter;
}

static void set_address(const char *address)
{
    char text[64];
    unsigned bits = 24;
    struct ifreq request = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(text, sizeof text, "%s", address);
    char *slash = strchr(text, '/');
    if (slash) {
        *slash = 0;
        bits = (unsigned)atoi(slash + 1);
    }
    strcpy(request.ifr_name, "eth0");
    in->sin_family = AF_INET;
    inet_pton(AF_INET, text, &in->sin_addr);
    if (ioctl(sock, SIOCSIFADDR, &request))
        printf("drover: address %s: %s\n", address, strerror(errno));
    in->sin_addr.s_addr = htonl(bits ? 0xffffffffu << (32 - bits) : 0);
    ioctl(sock, SIOCSIFNETMASK, &request);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    ioctl(sock, SIOCSIFFLAGS, &request);
    close(sock);
}

/* A socket to the sink; -1 when none is asked for. */
static int open_sink(void)
{
    char text[64];
    struct sockaddr_in sink = {.sin_family = AF_INET};
    setting("drover.sink", text, sizeof text);
    char *colon = strchr(text, ':');
    if (!colon)
        return -1;
    *colon = 0;
    inet_pton(AF_INET, text, &sink.sin_addr);
    sink.sin_port = htons((unsigned short)atoi(colon + 1));
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    /* No checksum: the witness must not depend on a virtual switch that fills it in. */
    setsockopt(sock, SOL_SOCKET, SO_NO_CHECK, &on, sizeof on);
    connect(sock, (struct sockaddr *)&sink, sizeof sink);
    return sock;
}

static void power_off(void)
{
    sync();
    reboot(RB_POWER_OFF);
}

/* Wait for the power button, as a server with an operating system would. */
static void watch_power_button(void)
{
    struct pollfd inputs[8];
    struct input_event event;
    nfds_t count = 0;
    char path[32];
    for (int n = 0; n < 8; n++) {
        snprintf(path, sizeof path, "/dev/input/event%d", n);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0)
            inputs[count++] = (struct pollfd){.fd = file, .events = POLLIN};
    }
    while (count && poll(inputs, count, -1) > 0)
        for (nfds_t n = 0; n < count; n++)
            if (inputs[n].revents & POLLIN && read(inputs[n].fd, &event, sizeof event) == sizeof event
                && event.type == EV_KEY && event.code == KEY_POWER)
                power_off();
}

static void dirty_memory(size_t mib)
{
    size_t size = mib << 20;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return;
    for (unsigned long pass = 1;; pass++) {
        for (size_t at = 0; at < size; at += 4096)
            *(volatile unsigned long *)(memory + at) = pass * 2654435761u + at;
        sleep_ms(1);
    }
}

static void hold_canary(const char *text)
{
    size_t size = 4 << 20, length = strlen(text);
    char *memory = malloc(size);
    for (size_t at = 0; memory && at + length < size; at += length)
        memcpy(memory + at, text, length);
    for (;;)
        pause();
}

/* The guest agent finds its port by a name that udev would have made. */
static void run_agent(void)
{
    char name[64], path[64];
    for (int n = 0; n < 8; n++) {
        snprintf(path, sizeof path, "/sys/class/virtio-ports/vport%dp1/name", n);
        slurp(path, name, sizeof name);
        if (!strncmp(name, AGENT_PORT, strlen(AGENT_PORT))) {
            snprintf(path, sizeof path, "/dev/vport%dp1", n);
            execl("/usr/sbin/qemu-ga", "qemu-ga", "-m", "virtio-serial", "-p", path, "-t", "/run", NULL);
        }
    }
}

static void run_shell(void)
{
    for (;;) {
        pid_t child = fork();
        if (!child) {
            setsid();
            int console = open("/dev/ttyS0", O_RDWR);
            if (console < 0)
                _exit(1);
            ioctl(console, TIOCSCTTY, 0);
            for (int n = 0; n < 3; n++)
                dup2(console, n);
            execl("/bin/sh", "sh", "-i", NULL);
            _exit(1);
        }
        waitpid(child, NULL, 0);
        sleep_ms(1000);
    }
}

static unsigned long hexadecimal(const char *at)
{
    char digits[9] = {0};
    memcpy(digits, at, 8);
    return strtoul(digits, NULL, 16);
}

/* Unpack a "newc" cpio archive into the root folder. */
static void unpack(const char *at, const char *end)
{
    while (at + 110 < end && !memcmp(at, "070701", 6)) {
        unsigned long mode = hexadecimal(at + 14), size = hexadecimal(at + 54), length = hexadecimal(at + 94);
        const char *name = at + 110, *data = at + ((110 + length + 3) & ~3UL);
        char path[256];
        snprintf(path, sizeof path, "/%s", name);
        if (data + size > end || !strcmp(name, "TRAILER!!!"))
            return;
        if (S_ISDIR(mode)) {
            mkdir(path, 0755);
        } else if (S_ISLNK(mode)) {
            char target[256];
            snprintf(target, sizeof target, "%.*s", (int)size, data);
            symlink(target, path);
        } else {
            int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode & 0777);
            if (file < 0 || write(file, data, size) != (ssize_t)size)
                printf("drover: %s: %s\n", path, strerror(errno));
            if (file >= 0)
                close(file);
        }
        at = data + ((size + 3) & ~3UL);
    }
}

/* The programs that lie on our own disk image behind the system; none when the kernel was started directly. */
static void unpack_extra(void)
{
    char head[512];
    int disk = open(DISK, O_RDONLY | O_CLOEXEC);
    if (disk >= 0 && pread(disk, head, sizeof head, EXTRA_OFFSET) == sizeof head) {
        size_t size = strtoul(head, NULL, 10);
        char *archive = size && size < EXTRA_MAX ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
        if (archive != MAP_FAILED) {
            for (size_t got = 0; got < size;) {
                ssize_t part = pread(disk, archive + got, size - got, EXTRA_OFFSET + 512 + (off_t)got);
                if (part <= 0)
                    break;
                got += (size_t)part;
            }
            unpack(archive, archive + size);
            munmap(archive, size);
        }
    }
    if (disk >= 0) {
        posix_fadvise(disk, 0, 0, POSIX_FADV_DONTNEED);
        close(disk);
    }
}

/* What may start after the counter does: it costs boot time. */
static void start_helpers(int ours)
{
    char text[256];
    if (!fork()) {
        if (ours && access("/bin/busybox", F_OK))
            unpack_extra();
        load_modules("/modules/late");
        if (!fork())
            watch_power_button();
        else if (!fork())
            run_agent();
        else
            run_shell();
        _exit(0);
    }
    if (*setting("drover.dirty", text, sizeof text) && !fork())
        dirty_memory((size_t)atol(text));
    if (*setting("drover.canary", text, sizeof text) && !fork())
        hold_canary(text);
}

static void count_for_ever(int disk, int sink)
{
    char boot[64], name[64], text[16];
    unsigned long counter = last_counter(disk), failed = 0;
    long given = atol(setting("drover.period", text, sizeof text)), period = given > 0 ? given : PERIOD_MS;
    slurp("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    boot[strcspn(boot, "\n")] = 0;
    setting("drover.name", name, sizeof name);
    for (long next = now_ms();; next += period) {
        memset(sector, 0, RECORD_SIZE);
        int length = snprintf(sector, RECORD_SIZE, "DROVER1 %s %lu %ld %lu %s\n", boot, counter + 1, now_ms(), failed, name);
        if (disk >= 0 && pwrite(disk, sector, RECORD_SIZE, RECORD_OFFSET) != RECORD_SIZE) {
            failed++;
        } else {
            counter++;
            if (sink >= 0)
                send(sink, sector, (size_t)length, 0);
        }
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        /* After a stall it goes on at its pace: a burst would hide the gap. */
        if (next + period < now_ms())
            next = now_ms() - period;
        sleep_ms(next + period - now_ms() > 0 ? next + period - now_ms() : 1);
    }
}

int main(void)
{
    char text[64], told[64];
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("run", "/run", "tmpfs", 0, NULL);
    setvbuf(stdout, NULL, _IONBF, 0);
    sector = aligned_alloc(4096, 4096);
    slurp("/proc/cmdline", config, CONFIG_SIZE);
    setting("drover.name", told, sizeof told);
    load_modules("/modules/early");
    int disk = open_disk(*told != 0);
    sethostname(setting("drover.name", text, sizeof text), strlen(text));
    if (*setting("drover.ip", text, sizeof text) && appears("/sys/class/net/eth0", 3000))
        set_address(text);
    int sink = open_sink();
    printf("drover: counting, %ld ms after start\n", now_ms());
    start_helpers(disk >= 0);
    count_for_ever(disk, sink);
}
