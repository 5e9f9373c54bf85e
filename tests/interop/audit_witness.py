"""What a hub vouches for as a witness, held against implementations that nobody here wrote.

proofbundle reads the checkpoint (C2SP signed-note, tlog-checkpoint, tlog-cosignature) and checks both
signatures and proofs; pymerkle makes the RFC 6962 tree of the raw lines and its proofs. Each check is
done again with something changed, and must fail then.
"""

import argparse
import base64
import json
import pathlib
import sys

import proofbundle
from proofbundle import checkpoint, tlogproof
from pymerkle import InmemoryTree


def read_lines(folder):
    """All lines as they stand, without LF."""
    raws = []
    for file in sorted(folder.glob("audit-*.log")):
        raws.extend(file.read_bytes().split(b"\n")[:-1])
    return raws


def tree_of(raws):
    tree = InmemoryTree(algorithm="sha256")
    for raw in raws:
        tree.append_entry(raw)
    return tree


class Note:
    """A cosigned checkpoint, and who must have signed it."""

    def __init__(self, path, audit_pub, witness):
        self.text = path.read_text()
        self.origin = self.text.split("\n", 1)[0]
        key = base64.b64decode(audit_pub.read_text().strip(), validate=True)
        self.log_vkey = checkpoint.vkey(self.origin, key)
        self.witness = witness.read_text().strip()

    def read(self, text=None, witness=None):
        """What it says, if log and witness signed it; else nothing."""
        said = checkpoint.verify_witnessed_checkpoint(
            text or self.text,
            self.log_vkey,
            [witness or self.witness],
            threshold=1,
            expected_origin=self.origin,
        )
        return (said["tree_size"], said["root"]) if said["ok"] else None

    def judge(self, faults):
        said = self.read()
        if said is None:
            faults.append(f"not signed by log and witness:\n{self.text}")
            return None
        size, root = said
        shorter = self.text.replace(f"\n{size}\n", f"\n{size - 1}\n", 1)
        other = base64.b64encode(bytes([root[0] ^ 1]) + root[1:]).decode()
        forged = self.text.replace(base64.b64encode(root).decode(), other, 1)
        alone = "\n".join(self.text.split("\n")[:-2]) + "\n"
        for what, text in {"size": shorter, "root": forged, "witness": alone}.items():
            if text == self.text or self.read(text) is not None:
                faults.append(f"with another {what} it is still taken:\n{text}")
        stranger = checkpoint.cosign_vkey(self.witness.split("+")[0], bytes(range(32)))
        if self.read(witness=stranger) is not None:
            faults.append("it is taken for another witness's")
        return said


def judge_tree(raws, size, root, faults):
    """The checkpoint's root is that of the lines, and of no others."""
    tree = tree_of(raws[:size])
    if tree.get_root() != root:
        faults.append(f"{size} lines have the root {tree.get_root().hex()}, not {root.hex()}")
    changed = list(raws[:size])
    changed[size // 2] = changed[size // 2].replace(b'"', b"'", 1)
    if tree_of(changed).get_root() == root:
        faults.append("with a line changed they have the same root")
    return tree


def judge_shown(requests, tree, note, faults):
    """Each checkpoint that the agent has shown its hub is the log's, and proves how it grew."""
    grown = 0
    for request in requests:
        shown = (request.get("body") or {}).get("audit") or {}
        if request.get("route") != "heartbeat" or "checkpoint" not in shown:
            continue
        said = checkpoint.verify_checkpoint(shown["checkpoint"], note.log_vkey)
        size, root, old = said["tree_size"], said["root"], shown["old_size"]
        if not said["ok"] or said["origin"] != note.origin or size != shown["size"]:
            faults.append(f"shown, and not the log's: {shown}")
        elif tree.get_root(size) != root:
            faults.append(f"another root of {size} lines than theirs: {shown}")
        elif 0 < old < size:
            grown += 1
            judge_growth(tree, (old, size), shown.get("proof", []), faults)
    if not grown:
        faults.append("no request shows how the log grew")
    return grown


def judge_growth(tree, sizes, proof, faults):
    """The agent's proof, by the roots of the lines."""
    proof, (old, new) = [bytes.fromhex(part) for part in proof], sizes
    old_root, root = tree.get_root(old), tree.get_root(new)

    def holds(proof, old_root):
        return proofbundle.verify_consistency(old, new, proof, old_root, root)

    if not holds(proof, old_root):
        faults.append(f"no proof that {old} lines became {new}")
    if holds(proof, bytes(32)) or holds(proof[:-1], old_root):
        faults.append(f"another proof holds, too, that {old} lines became {new}")


def judge_lines(raws, tree, note, faults):
    """The file of a proof for each line, made from pymerkle's paths, as others would take it."""
    size, _ = note.read()
    for index, raw in enumerate(raws[:size]):
        # It counts from one, and the first of the path is the line itself.
        path = tree.prove_inclusion(index + 1, size).path[1:]
        text = tlogproof.format_tlog_proof(index, path, note.text, extra=raw)
        judge_proof(text, note, faults)


def judge_proof(text, note, faults):
    """A file (c2sp.org/tlog-proof@v1) shows that the line in its `extra` is in the log."""

    def holds(text, raw):
        said = proofbundle.verify_tlog_proof(
            text, raw, note.log_vkey, [note.witness], threshold=1, expected_origin=note.origin
        )
        return said["ok"]

    said = tlogproof.parse_tlog_proof(text)
    index, raw = said["index"], said["extra"]
    if not holds(text, raw):
        faults.append(f"it does not show that line {index} is in the log:\n{text}")
    if holds(text, raw.replace(b'"', b"'", 1)):
        faults.append(f"it shows another line {index}, too")
    if holds(text.replace(f"index {index}\n", f"index {index ^ 1}\n", 1), raw):
        faults.append(f"it shows that line {index} is number {index ^ 1}, too")
    return index, raw


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", required=True, type=pathlib.Path, help="the log's folder")
    parser.add_argument("--anchor", required=True, type=pathlib.Path, help="a cosigned checkpoint")
    parser.add_argument("--witness", required=True, type=pathlib.Path, help="the hub's key")
    parser.add_argument("--requests", required=True, type=pathlib.Path, help="what the hub was sent")
    parser.add_argument("--proof", default=[], action="append", type=pathlib.Path, help="a line's")
    options = parser.parse_args()
    faults, raws = [], read_lines(options.dir)
    note = Note(options.anchor, options.dir / "audit.pub", options.witness)
    if said := note.judge(faults):
        size, root = said
        tree = judge_tree(raws, size, root, faults)
        shown = judge_shown(json.loads(options.requests.read_text()), tree_of(raws), note, faults)
        judge_lines(raws, tree, note, faults)
        for path in options.proof:
            index, raw = judge_proof(path.read_text(), note, faults)
            if raws[index] != raw:
                faults.append(f"{path.name} is of another line than {index}")
        print(f"{len(raws)} lines; {size} witnessed, each proven; {shown} proofs that the log grew")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
