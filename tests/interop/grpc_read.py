"""Calls every read method of the admin API as a stranger would: by reflection alone, over the socket.

No generated code: services, methods and messages come from the running agent. A method that the
tables below do not know fails the run, so that a new one cannot go untried.
"""

import argparse
import base64
import contextlib
import os
import pwd
import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

PACKAGE = "jtnt.admin.v1"
SECONDS = 10
HEALTH = "grpc.health.v1.Health"
# Each version of reflection lists itself and not the other.
REFLECTION = "grpc.reflection."
# These change something; they are not called here, unless to be refused.
CHANGES = {
    "AgentService/SetLogLevel",
    "AgentService/Reload",
    "AuditService/CleanLog",
    "AuditService/RotateKey",
    "CacheService/CleanCache",
    "CertService/ForceRenewal",
    "CertService/RenewCertificate",
    "CertService/RollBackCertificate",
    "JobService/CancelJob",
    "PolicyService/RefreshPolicy",
}
# Only a monitored job teaches anything; others are refused.
LEARN = "PolicyService/LearnPolicy"
# These never end by themselves: the first answer counts.
ENDLESS = {
    "AgentService/WatchStatus",
    "AuditService/TailLines",
    "JobService/WatchJobs",
}


def reads(job, output, program):
    """Each read method: what to ask, and what must be true of the answers (a list of JSON)."""
    return {
        "AgentService/GetStatus": ({}, lambda a: a[0]["status"]["enrolled"]),
        "AgentService/WatchStatus": ({}, lambda a: a[0]["status"]["agentId"]),
        "AgentService/GetHealth": (
            {},
            lambda a: a[0]["status"] == "healthy" and len(a[0]["checks"]) == 6,
        ),
        "AgentService/GetVersion": ({}, lambda a: a[0]["apiVersion"] == PACKAGE),
        "AgentService/TestConnection": (
            {},
            lambda a: a[0]["ok"] and all(step["ok"] for step in a[0]["steps"]),
        ),
        "AgentService/GetLogLevel": ({}, lambda a: a[0]["level"] == "info"),
        "AgentService/ExplainAuthz": (
            {"user": "0", "method": f"/{PACKAGE}.JobService/CancelJob"},
            lambda a: a[0]["neededRole"] == "operate" and a[0]["why"],
        ),
        "AuditService/ListLines": (
            {"event": "job_executed"},
            lambda a: any(job in line(answer) for answer in a),
        ),
        "AuditService/TailLines": ({"lines": 1}, lambda a: line(a[0]).endswith('"}')),
        "AuditService/ProveLine": (
            {"seq": 0},
            lambda a: a[0]["proof"].startswith("c2sp.org/tlog-proof@v1\n"),
        ),
        "AuditService/ExportLog": (
            {},
            lambda a: [p["file"]["name"] for p in a if "file" in p][-1] == "manifest.json",
        ),
        "AuditService/VerifyLog": (
            {},
            lambda a: a[-1]["summary"]["verdict"] == "OK",
        ),
        "CacheService/GetCache": ({}, lambda a: int(a[0]["maxBytes"]) > 0),
        "CertService/ProveCertificate": (
            {},
            lambda a: a[0]["serial"] == a[0]["seenSerial"] and a[0]["keyExchange"],
        ),
        "CertService/GetCertificate": (
            {},
            lambda a: a[0]["chainOk"] and a[0]["keyMatches"] and a[0]["status"] == "pass",
        ),
        "CertService/PlanRenewal": ({}, lambda a: a[0]["renewAt"] < a[0]["notAfter"]),
        "JobService/ListJobs": (
            {"limit": 10},
            lambda a: job in [j["jobId"] for j in a[0]["jobs"]],
        ),
        "JobService/GetJob": (
            {"job_id": job},
            lambda a: a[0]["job"]["state"] == "JOB_STATE_OK" and a[0]["job"]["exitCode"] == 0,
        ),
        "JobService/ReadLogs": (
            {"job_id": job},
            lambda a: written(a) == f"{output}\n",
        ),
        "JobService/WatchJobs": ({}, lambda a: a[0]["job"]["jobId"]),
        "PolicyService/DiffPolicy": (
            {"document": '{"version": 9, "expires_at": "2100-01-01T00:00:00Z"}'},
            lambda a: int(a[0]["documentVersion"]) == 9 and a[0]["changes"],
        ),
        "PolicyService/GetPolicy": ({}, lambda a: a[0]["version"] == "1" and a[0]["signedBy"]),
        "PolicyService/CheckExec": (
            {"path": program, "args": [output]},
            lambda a: a[0]["decision"]["allowed"] and a[0]["decision"]["rule"] == "echo",
        ),
        "PolicyService/CheckScript": (
            {"interpreter": "/bin/sh", "sha256": "0" * 64},
            lambda a: not a[0]["decision"]["allowed"],
        ),
        "PolicyService/CheckFile": (
            {"access": "FILE_ACCESS_READ", "path": "/etc/shadow"},
            lambda a: not a[0]["decision"]["allowed"] and a[0]["decision"]["reason"],
        ),
    }


def refusals(job):
    """Calls that must be refused, and with which code."""
    return [
        ("JobService/GetJob", {"job_id": "no-such-job"}, grpc.StatusCode.NOT_FOUND),
        ("JobService/GetJob", {"job_id": "../../etc/passwd"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("JobService/CancelJob", {"job_id": job}, grpc.StatusCode.FAILED_PRECONDITION),
        # It was allowed by a rule, so nobody watched it.
        (LEARN, {"job_id": job}, grpc.StatusCode.FAILED_PRECONDITION),
        (LEARN, {"job_id": "no-such-job"}, grpc.StatusCode.NOT_FOUND),
        ("PolicyService/DiffPolicy", {"document": "{"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("AgentService/SetLogLevel", {"level": "loud"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("AuditService/VerifyLog", {"files": ["../keys/audit.key"]}, grpc.StatusCode.NOT_FOUND),
        ("AuditService/ProveLine", {"seq": 1 << 40}, grpc.StatusCode.NOT_FOUND),
    ]


def line(answer):
    return base64.b64decode(answer["line"]).decode()


def written(answers):
    return b"".join(base64.b64decode(part["data"]) for part in answers).decode()


class Api:
    """The services of one socket, known by reflection."""

    def __init__(self, channel):
        self.channel = channel
        database = ProtoReflectionDescriptorDatabase(channel)
        listed = database.get_services()
        self.services = {name for name in listed if not name.startswith(REFLECTION)}
        pool = descriptor_pool.DescriptorPool(database)
        self.methods = {}
        for service in sorted(self.services - {HEALTH}):
            found = pool.FindServiceByName(service)
            for method in found.methods:
                self.methods[f"{found.name}/{method.name}"] = method

    def call(self, name, request):
        """All answers of a method, or the first of one that never ends."""
        method = self.methods[name]
        question = json_format.ParseDict(
            request, message_factory.GetMessageClass(method.input_type)()
        )
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        stub = kind(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=type(question).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer = stub(question, timeout=SECONDS)
        if not method.server_streaming:
            return [as_json(answer)]
        if name in ENDLESS:
            first = next(answer)
            answer.cancel()
            return [as_json(first)]
        return [as_json(part) for part in answer]


def as_json(message):
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


def connect(socket):
    # Without it the path would be sent as :authority, which is not one.
    return grpc.insecure_channel(f"unix:{socket}", [("grpc.default_authority", "localhost")])


def refused_with(error, code):
    """What is wrong with a refusal; None when it is as it should be."""
    if error.code() != code:
        return f"answered {error.code().name} ({error.details()}), not {code.name}"
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        return f"{code.name} ({error.details()}) comes without ErrorInfo"
    if info.domain != "jtnt" or not info.reason or info.reason != info.reason.upper():
        return f"ErrorInfo has domain {info.domain!r} and reason {info.reason!r}"
    if not error.details():
        return f"{code.name} comes without a message"
    return None


class Tally:
    """Everything is tried before the verdict."""

    def __init__(self):
        self.faults = []

    @contextlib.contextmanager
    def trying(self, what):
        try:
            yield
        except Exception as error:  # a check may fail in any way, and the others go on
            self.no(what, f"{type(error).__name__}: {error}")

    def no(self, what, why):
        self.faults.append(f"{what}: {why}")


def every_read(api, tally, table):
    known = set(table) | CHANGES | {LEARN}
    for name in sorted(set(api.methods) - known):
        tally.no(name, "grpc_read.py does not know this method; add it to a table")
    for name in sorted(known - set(api.methods)):
        tally.no(name, "is not served any more")
    for name, (request, holds) in table.items():
        if name not in api.methods:
            continue
        with tally.trying(name):
            answers = api.call(name, request)
            if not answers or not holds(answers):
                tally.no(name, f"answered {answers!r:.2000}")


def every_refusal(api, tally, calls):
    for name, request, code in calls:
        with tally.trying(f"{name} {request}"):
            try:
                answers = api.call(name, request)
                tally.no(f"{name} {request}", f"was answered: {answers!r:.500}")
            except grpc.RpcError as error:
                if why := refused_with(error, code):
                    tally.no(f"{name} {request}", why)


def health(channel, api, tally):
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ["", *sorted(api.services - {HEALTH})]:
        with tally.trying(f"health of {service!r}"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
            if answer.status != serving:
                tally.no(f"health of {service!r}", f"is {answer.status}, not SERVING")
    with tally.trying("health of an unknown service"):
        try:
            stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=SECONDS)
            tally.no("health of an unknown service", "is known")
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                tally.no("health of an unknown service", error.code().name)


def stranger(socket, tally):
    """A user without any role, who can reach the socket and is told so. Only root can try."""
    if os.geteuid() != 0:
        print("skipped: only root can call as somebody else")
        return
    user, groups = pwd.getpwnam("daemon"), os.getgroups()
    os.setgroups([])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        with connect(socket) as channel, tally.trying("a call without a role"):
            stub = channel.unary_unary(f"/{PACKAGE}.AgentService/GetStatus")
            try:
                stub(b"", timeout=SECONDS)
                tally.no("a call without a role", "was answered")
            except grpc.RpcError as error:
                if why := refused_with(error, grpc.StatusCode.PERMISSION_DENIED):
                    tally.no("a call without a role", why)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--job", required=True, help="a job that ended well")
    parser.add_argument("--output", required=True, help="the line it wrote")
    parser.add_argument("--program", required=True, help="what it ran, by rule `echo`")
    options = parser.parse_args()
    tally = Tally()
    stranger(options.socket, tally)
    with connect(options.socket) as channel:
        api = Api(channel)
        table = reads(options.job, options.output, options.program)
        wanted = {f"{PACKAGE}.{name.split('/')[0]}" for name in table} | {HEALTH}
        if api.services != wanted:
            tally.no("services", f"{sorted(api.services)}, not {sorted(wanted)}")
        every_read(api, tally, table)
        every_refusal(api, tally, refusals(options.job))
        health(channel, api, tally)
    print(f"{len(api.services)} services, {len(api.methods)} methods, {len(table)} called")
    for fault in tally.faults:
        print(fault)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
