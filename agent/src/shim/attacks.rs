//! What jobs try, and what they need: scripts for [`super::escapes`].

/// Who tries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    /// A user of the job's own.
    User,
    /// Root, as a rule may say.
    Root,
    /// As [`As::User`], under a rule that lets it start nothing. Its script is for perl.
    Childless,
}

/// An attempt: its name, who, and a script that says ESCAPED where it succeeds. `$D` is a folder
/// with `secret` in it, and `open/` is what the policy opens.
pub(super) type Attack = (&'static str, As, &'static str);

/// Work where nothing holds a job.
pub(super) const ATTACKS: &[Attack] = &[
    ("read a file that no rule opens", As::User, "grep -q key $D/secret && echo ESCAPED"),
    (
        "read it through a symbolic link",
        As::User,
        "ln -s $D/secret $D/open/l; grep -q key $D/open/l && echo ESCAPED",
    ),
    (
        "read it through a link that another process changes, 10,000 times",
        As::User,
        "perl -e '$d = \"$ENV{D}/open\"; sub to { symlink $_[0], \"$d/n\"; \
         rename \"$d/n\", \"$d/race\" } \
         sub see { open F, \"<\", \"$d/race\" and <F> =~ /key/ and $seen = 1 } \
         open F, \">\", \"$d/fine\"; close F; to(\"$d/fine\"); \
         if ($p = fork) { for (1..10000) { see } kill 9, $p; wait; to(\"$ENV{D}/secret\"); see; \
         print \"ESCAPED\" if $seen } \
         else { while (1) { to(\"$ENV{D}/secret\"); to(\"$d/fine\") } }'",
    ),
    (
        "read it through a link where a rule's own file was",
        As::User,
        "grep -q key $D/out/planted && echo ESCAPED",
    ),
    ("read it through ..", As::User, "grep -q key $D/open/../secret && echo ESCAPED"),
    (
        "read it through /proc/self/root",
        As::User,
        "grep -q key /proc/self/root$D/secret && echo ESCAPED",
    ),
    (
        "read it through a new hard link",
        As::User,
        "ln $D/secret $D/open/h; grep -q key $D/open/h && echo ESCAPED",
    ),
    ("list a folder that no rule opens", As::User, "ls $D | grep -q secret && echo ESCAPED"),
    ("write to it", As::User, "echo x >> $D/secret && echo ESCAPED"),
    ("truncate it", As::User, "perl -e 'truncate($ENV{D}.\"/secret2\", 0) && print \"ESCAPED\"'"),
    ("remove it", As::User, "rm $D/out/victim && echo ESCAPED"),
    ("move a file out", As::User, "echo x > $D/open/f; mv $D/open/f $D/out/f && echo ESCAPED"),
    ("change its mode", As::User, "chmod 4777 $D/secret3 && echo ESCAPED"),
    ("read a file that a rule denies", As::User, "grep -q key $D/part/closed && echo ESCAPED"),
    (
        "rename what a rule denies, then read it",
        As::User,
        "mv $D/part/closed2 $D/part/c; grep -q key $D/part/c && echo ESCAPED",
    ),
    (
        "move its folder away, then read it",
        As::User,
        "mv $D/part/sub $D/part/s2; grep -q key $D/part/s2/closed && echo ESCAPED",
    ),
    (
        "exchange it for another",
        As::User,
        "echo key > $D/part/free/x; mv $D/part/free/x $D/part/closed && echo ESCAPED",
    ),
    (
        "make a file that a rule denies and that is not there yet",
        As::User,
        "echo x > $D/part/later && echo ESCAPED",
    ),
    (
        "read what a rule denies where all may be executed",
        As::User,
        "grep -q key $D/bin/closed && echo ESCAPED",
    ),
    ("write to a file that may be read only", As::User, "echo x >> $D/part/fixed && echo ESCAPED"),
    (
        "execute a file that it wrote",
        As::User,
        "cp /usr/bin/true $D/open/t && $D/open/t && echo ESCAPED",
    ),
    (
        "execute a file in its temporary folder",
        As::User,
        "cp /usr/bin/true /tmp/jtnt-t && /tmp/jtnt-t && echo ESCAPED",
    ),
    (
        "execute it by the loader",
        As::User,
        "cp /usr/bin/true $D/open/u && /lib64/ld-linux-x86-64.so.2 $D/open/u && echo ESCAPED",
    ),
    (
        "execute a file in memory",
        As::User,
        "perl -e '$n = \"x\"; $f = syscall(319, $n, 0); exit if $f < 0; open(F, \"+<&=\", $f); \
         open(I, \"<\", \"/usr/bin/true\"); print F $_ while <I>; \
         open(R, \"<\", \"/proc/self/fd/$f\"); close(F); \
         system(\"/proc/self/fd/\" . fileno(R)) == 0 && print \"ESCAPED\"'",
    ),
    (
        "execute one by the loader",
        As::User,
        "perl -e '$n = \"x\"; $f = syscall(319, $n, 8); exit if $f < 0; open(F, \"+<&=\", $f); \
         open(I, \"<\", \"/usr/bin/true\"); print F $_ while <I>; close(I); F->flush; \
         $^F = 99; open(R, \"<\", \"/proc/self/fd/$f\"); \
         system(\"/lib64/ld-linux-x86-64.so.2\", \"/proc/self/fd/\" . fileno(R)) == 0 \
         && print \"ESCAPED\"'",
    ),
    (
        "reach a Unix socket by its path",
        As::User,
        "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) && \
         connect(S, pack_sockaddr_un($ENV{D}.\"/open/sock\")) && print \"ESCAPED\"'",
    ),
    (
        "reach an abstract Unix socket",
        As::User,
        "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) && \
         connect(S, pack_sockaddr_un(\"\\0\".$ENV{ABSTRACT})) && print \"ESCAPED\"'",
    ),
    (
        "send to a Unix socket from one of a pair",
        As::User,
        "perl -MSocket -e 'socketpair(A, B, AF_UNIX, SOCK_DGRAM, 0) && \
         send(A, \"x\", 0, pack_sockaddr_un($ENV{D}.\"/open/dgram\")) && print \"ESCAPED\"'",
    ),
    (
        "send to one from another kind of pair",
        As::User,
        "perl -MSocket -e 'socketpair(A, B, AF_UNIX, SOCK_RAW, 0) && \
         send(A, \"x\", 0, pack_sockaddr_un($ENV{D}.\"/open/dgram\")) && print \"ESCAPED\"'",
    ),
    (
        "reach the network where the policy says none",
        As::User,
        "perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0) && \
         connect(S, pack_sockaddr_in($ENV{PORT}, INADDR_LOOPBACK)) && print \"ESCAPED\"'",
    ),
    ("make a user namespace", As::User, "unshare -U true && echo ESCAPED"),
    (
        "make one by clone",
        As::User,
        "perl -e '$p = syscall(56, 0x10000000 | 17, 0, 0, 0, 0); exit unless defined $p; \
         exit if $p == 0; $p > 0 && print \"ESCAPED\"'",
    ),
    (
        "make a child of whoever keeps the job",
        As::User,
        "perl -e '$p = syscall(56, 0x8000 | 17, 0, 0, 0, 0); exit unless defined $p; \
         exit if $p == 0; $p > 0 && print \"ESCAPED\"'",
    ),
    (
        "leave a set-user-id program behind",
        As::User,
        "cp /usr/bin/true $D/open/s && chmod 6755 $D/open/s && echo ESCAPED",
    ),
    (
        "make one as it is opened",
        As::User,
        "perl -MFcntl -e 'sysopen(F, $ENV{D}.\"/open/s2\", O_CREAT|O_WRONLY, 04755) && \
         (stat(F))[2] & 04000 && print \"ESCAPED\"'",
    ),
    (
        "open io_uring",
        As::User,
        "perl -e '$p = \"\\0\" x 120; syscall(425, 4, $p) >= 0 && print \"ESCAPED\"'",
    ),
    (
        "use the kernel's keys",
        As::User,
        "perl -e 'syscall(250, 0, -3, 1) >= 0 && print \"ESCAPED\"'",
    ),
    (
        "open a socket to the hypervisor",
        As::User,
        "perl -e 'socket(S, 40, 1, 0) && print \"ESCAPED\"'",
    ),
    ("see the machine's devices", As::User, "test -e /dev/ptmx && echo ESCAPED"),
    (
        "see what runs on the machine",
        As::User,
        "test -e /run && test -n \"$(ls -A /run)\" && echo ESCAPED",
    ),
    (
        "trace a process",
        As::User,
        "sleep 5 & perl -e 'syscall(101, 16, 0 + shift, 0, 0) == 0 && print \"ESCAPED\"' $!; kill $!",
    ),
    ("root: read a file that no rule opens", As::Root, "grep -q key $D/secret && echo ESCAPED"),
    (
        "root: read the agent's files under a rule for everything",
        As::Root,
        "grep -q key $D/open/agent/key && echo ESCAPED",
    ),
    ("root: replace the agent's program", As::Root, "echo x >> $D/open/binary && echo ESCAPED"),
    (
        "root: set a mode on a file of the system",
        As::Root,
        "chmod 4777 $D/out/victim2 && echo ESCAPED",
    ),
    (
        "root: change a device by its own input",
        As::Root,
        "perl -e 'chmod(0666, *STDIN) && print \"ESCAPED\"'",
    ),
    ("root: change the machine's devices", As::Root, "chmod 666 /dev/null && echo ESCAPED"),
    ("root: switch the machine", As::Root, "test -w /sys/power/state && echo ESCAPED"),
    ("root: mount", As::Root, "mount -t tmpfs x /mnt && echo ESCAPED && umount /mnt"),
    (
        "root: make what is read-only writable",
        As::Root,
        "mount -o remount,bind,rw / && echo ESCAPED",
    ),
    ("root: make a device", As::Root, "mknod $D/open/disk b 8 0 && echo ESCAPED"),
    (
        "root: write to the kernel's settings",
        As::Root,
        "test -w /proc/sys/kernel/hostname && echo ESCAPED",
    ),
    ("root: change the root folder", As::Root, "chroot $D/.. true; chroot / true && echo ESCAPED"),
    (
        "root: load a program into the kernel",
        As::Root,
        "perl -e '$a = pack(\"LLLLLL\", 2, 4, 4, 1, 0, 0) . \"\\0\" x 100; \
         syscall(321, 0, $a, 72) >= 0 && print \"ESCAPED\"'",
    ),
    (
        "childless: start a program",
        As::Childless,
        "system('/usr/bin/true') == 0 and print 'ESCAPED'",
    ),
    ("childless: become one", As::Childless, "exec '/usr/bin/echo', 'ESCAPED'"),
    (
        "childless: start one by the loader",
        As::Childless,
        "exec '/lib64/ld-linux-x86-64.so.2', '/usr/bin/echo', 'ESCAPED'",
    ),
    (
        "childless: start itself again",
        As::Childless,
        "exec '/usr/bin/perl', '-e', 'print \"ESCAPED\"'",
    ),
    (
        "childless: start itself by its descriptor",
        As::Childless,
        "open(F, '<', '/usr/bin/perl'); $a = pack('ppp', 'perl', '-e', 'print \"ESCAPED\"'); \
         $n = ''; $a .= \"\\0\" x 8; $e = \"\\0\" x 8; syscall(322, fileno(F), $n, $a, $e, 4096)",
    ),
];

/// What a job is to be able to do.
pub(super) const WAYS: &[(&str, &str)] = &[
    ("read what a rule opens", "grep -q key $D/open/plain && echo ok"),
    ("read around what a rule denies", "grep -q key $D/part/free/plain && echo ok"),
    ("write around it", "echo x > $D/part/free/new && rm $D/part/free/new && echo ok"),
    ("read what it may only read", "grep -q key $D/part/fixed && echo ok"),
    ("write there", "echo x > $D/open/new && echo y >> $D/open/new && rm $D/open/new && echo ok"),
    (
        "move within it",
        "mkdir $D/open/d && echo x > $D/open/m && mv $D/open/m $D/open/d/m && echo ok",
    ),
    (
        "use a temporary folder",
        "echo x > /tmp/x && mkdir /var/tmp/y && mv /tmp/x /var/tmp/y/x && echo ok",
    ),
    ("use shared memory", "echo x > /dev/shm/x && echo ok"),
    ("use its devices", "head -c 8 /dev/urandom > /dev/null && echo ok"),
    ("use its own streams", "echo ok > /dev/stdout"),
    ("start programs of the system", "ls / > /dev/null 2>&1; uname | grep -q Linux && echo ok"),
    ("look up its user", "getent passwd root > /dev/null && echo ok"),
    ("look at its own processes", "ps ax > /dev/null && echo ok"),
    ("use threads and pipes", "seq 100 | sort -R --parallel=2 | wc -l | grep -q 100 && echo ok"),
];
