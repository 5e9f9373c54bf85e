//! System calls that no job needs and that lead around the rest: new namespaces and mounts, the
//! kernel's own programs and keys, programs without a file, sockets to whatever listens on this
//! machine.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as If,
    SeccompFilter, SeccompRule, TargetArch, apply_filter, sock_filter,
};

/// Programs for the kernel; the strictest answer of all counts.
#[derive(Debug, Default)]
pub(super) struct Filters(Vec<BpfProgram>);

/// Refused outright.
const NEVER: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];
#[cfg(target_arch = "x86_64")]
const NEVER_HERE: &[libc::c_long] = &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_HERE: &[libc::c_long] = &[];

/// Each of them makes a namespace.
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Calls that give a file its mode, and in which argument.
const MODES: &[(libc::c_long, u8)] = &[
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    (libc::SYS_fchmodat2, 2),
    (libc::SYS_openat, 3),
    (libc::SYS_mknodat, 2),
    (libc::SYS_mkdirat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 2),
];
/// Of a socket's type; flags stand above it.
const TYPE_MASK: u64 = 0xf;
/// Calls of x86-64 in the disguise of another interface, which the filters would take for others.
const X32: u32 = 0x4000_0000;

impl Filters {
    /// `ipc`: sockets of this machine are open. `ticket`: nothing is executed but by a call that
    /// shows this number as its sixth argument, which the kernel itself does not look at.
    pub(super) fn new(ipc: bool, ticket: Option<u64>) -> io::Result<Self> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            NEVER.iter().chain(NEVER_HERE).map(|call| (*call, Vec::new())).collect();
        let mut refuse = |call: libc::c_long, all: Vec<If>| -> io::Result<()> {
            let rule = SeccompRule::new(all).map_err(io::Error::other)?;
            rules.entry(call).or_default().push(rule);
            Ok(())
        };
        for flag in NAMESPACES {
            let bit = number(*flag)?;
            refuse(libc::SYS_clone, vec![check(0, Len::Qword, Op::MaskedEq(bit), bit)?])?;
        }
        // A child of whoever keeps the job is nobody's to wait for.
        let parent = number(libc::CLONE_PARENT)?;
        refuse(libc::SYS_clone, vec![check(0, Len::Qword, Op::MaskedEq(parent), parent)?])?;
        let mut families = vec![libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
        if ipc {
            families.push(libc::AF_UNIX);
        } else {
            // Only these are bound to each other; one of another pair can send elsewhere.
            let bound = [number(libc::SOCK_STREAM)?, number(libc::SOCK_SEQPACKET)?];
            for kind in (0..=TYPE_MASK).filter(|kind| !bound.contains(kind)) {
                let of_this = check(1, Len::Dword, Op::MaskedEq(TYPE_MASK), kind)?;
                refuse(libc::SYS_socketpair, vec![of_this])?;
            }
        }
        let others = families
            .iter()
            .map(|family| check(0, Len::Dword, Op::Ne, number(*family)?))
            .collect::<io::Result<Vec<_>>>()?;
        refuse(libc::SYS_socket, others)?;
        // Of netlink only what tells addresses and routes.
        let netlink = check(0, Len::Dword, Op::Eq, number(libc::AF_NETLINK)?)?;
        let not_route = check(2, Len::Dword, Op::Ne, number(libc::NETLINK_ROUTE)?)?;
        refuse(libc::SYS_socket, vec![netlink, not_route])?;
        if let Some(ticket) = ticket {
            refuse(libc::SYS_execve, vec![check(0, Len::Qword, Op::Ge, 0)?])?;
            refuse(libc::SYS_execveat, vec![check(5, Len::Qword, Op::Ne, ticket)?])?;
        }
        // Whoever executes such a file later gets the job's user, or its group.
        for (call, argument) in MODES {
            for bit in [libc::S_ISUID, libc::S_ISGID] {
                let bit = u64::from(bit);
                refuse(*call, vec![check(*argument, Len::Dword, Op::MaskedEq(bit), bit)?])?;
            }
        }
        // Their flags are in memory, where no filter sees them. Libraries fall back to older ones.
        let hidden = [libc::SYS_clone3, libc::SYS_openat2].map(|call| (call, Vec::new())).into();
        Ok(Self(vec![program(rules, libc::EPERM)?, program(hidden, libc::ENOSYS)?, no_disguise()]))
    }

    pub(super) fn apply(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|program| apply_filter(program).map_err(io::Error::other))
    }
}

fn number(value: libc::c_int) -> io::Result<u64> {
    u64::try_from(value).map_err(io::Error::other)
}

fn check(argument: u8, length: Len, how: Op, value: u64) -> io::Result<If> {
    If::new(argument, length, how, value).map_err(io::Error::other)
}

fn program(rules: BTreeMap<i64, Vec<SeccompRule>>, answer: libc::c_int) -> io::Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let refused = SeccompAction::Errno(answer.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)
}

/// Refuses every number from [`X32`] on: `A = nr; if A >= X32 refuse; allow`.
fn no_disguise() -> BpfProgram {
    let line = |code: u32, jt, jf, k| sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    };
    vec![
        line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        line(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        line(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs(),
        ),
        line(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Whether the kernel takes filters.
pub(super) fn is_known() -> bool {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    let known = TargetArch::try_from(std::env::consts::ARCH).is_ok();
    known && actions.is_ok_and(|actions| actions.split_whitespace().any(|word| word == "errno"))
}
