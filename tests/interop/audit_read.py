"""Reads an audit log with nothing of this project: json, hashlib, and OpenSSL for the signatures.

The format is written from its description (proto/audit.rs), not from its code: the last 104 bytes
of a line are the signature's field, what stands before them is signed, and `prev` is the RFC 6962
leaf hash of the line before.
"""

import argparse
import base64
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile

DOMAIN = b"jtnt-audit/v1\n"
SUFFIX = re.compile(rb',"signature":"([A-Za-z0-9+/]{86}==)"\}')
SUFFIX_BYTES = 104
# An Ed25519 public key in DER, but for its 32 bytes.
SPKI = bytes.fromhex("302a300506032b6570032100")
# What the guide's example has in every line, and in the line of a job.
ALWAYS = {"timestamp", "type", "event", "agent_id", "signature", "seq", "prev"}
OF_A_JOB = ALWAYS | {"job_id", "command", "status", "user", "policy_version", "details"}
EVENTS = {"startup", "enrollment", "policy_changed", "job_executed", "policy_violation", "shutdown"}


def no_twins(pairs):
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise ValueError(f"a key stands twice in {keys}")
    if any(value is None for _, value in pairs):
        raise ValueError(f"null in {keys}: what is absent must be absent")
    return dict(pairs)


def leaf_hash(raw):
    return base64.b64encode(hashlib.sha256(b"\0" + raw).digest()).decode()


def signed_by(key, raw, folder):
    """What OpenSSL says of a line's signature; None when it is good."""
    suffix = SUFFIX.fullmatch(raw[-SUFFIX_BYTES:])
    if not suffix:
        return "no signature at its end"
    message, signature = folder / "message", folder / "signature"
    message.write_bytes(DOMAIN + raw[:-SUFFIX_BYTES])
    signature.write_bytes(base64.b64decode(suffix[1]))
    said = subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin"]
        + ["-in", message, "-sigfile", signature],
        capture_output=True,
        text=True,
    )
    return None if said.returncode == 0 else said.stdout + said.stderr


def public_key(text, folder):
    """audit.pub as OpenSSL wants it."""
    pem = base64.b64encode(SPKI + base64.b64decode(text)).decode()
    path = folder / "audit.pem"
    path.write_text(f"-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n")
    return path


def read_lines(raws, audit_pub, faults):
    """What the lines say, each held against its signature and the line before."""
    lines, prev = [], base64.b64encode(bytes(32)).decode()
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        key = public_key(audit_pub, folder)
        for number, raw in enumerate(raws):
            if fault := signed_by(key, raw, folder):
                faults.append(f"line {number}: {fault}")
            try:
                line = json.loads(raw, object_pairs_hook=no_twins)
            except ValueError as error:
                faults.append(f"line {number}: {error}")
                continue
            if missing := ALWAYS - set(line):
                faults.append(f"line {number} lacks {sorted(missing)}")
            if (line.get("type"), line.get("seq"), line.get("prev")) != ("audit", number, prev):
                faults.append(f"line {number} does not follow, prev should be {prev}: {line}")
            lines.append(line)
            prev = leaf_hash(raw)
    return lines


def judge_events(lines, faults):
    events = [line.get("event") for line in lines]
    if missing := EVENTS - set(events):
        faults.append(f"no line of {sorted(missing)}")
    if events[-1:] != ["shutdown"]:
        faults.append(f"the last line is {events[-1:]}, not the shutdown")
    if len({line.get("agent_id") for line in lines}) != 1:
        faults.append("lines of several agents")
    return events


def judge_job(lines, job, command, faults):
    """The line of the guide's example."""
    ended = [x for x in lines if x.get("event") == "job_executed" and x.get("job_id") == job]
    if len(ended) != 1:
        faults.append(f"{len(ended)} lines say that {job} was executed, not one")
    for line in ended:
        if missing := OF_A_JOB - set(line):
            faults.append(f"the job's line lacks {sorted(missing)}: {line}")
        elif not (
            line["status"] == "success"
            and line["command"].startswith(command)
            and line["policy_version"] == 1
            and line["details"].get("exit_code") == 0
            and isinstance(line["details"].get("duration_ms"), int)
        ):
            faults.append(f"the job's line is not what happened: {line}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", required=True, type=pathlib.Path)
    parser.add_argument("--job", required=True, help="a job that ended well")
    parser.add_argument("--command", required=True, help="what it ran")
    options = parser.parse_args()
    faults, raws = [], []
    files = sorted(options.dir.glob("audit-*.log"))
    for file in files:
        *whole, rest = file.read_bytes().split(b"\n")
        raws.extend(whole)
        if rest:
            faults.append(f"{file.name} does not end in LF")
    if not raws:
        faults.append(f"{options.dir} has no lines")
    lines = read_lines(raws, (options.dir / "audit.pub").read_text(), faults)
    events = judge_events(lines, faults)
    judge_job(lines, options.job, options.command, faults)
    print(f"{len(raws)} lines in {[file.name for file in files]}: {events}")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
