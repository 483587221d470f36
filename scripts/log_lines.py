"""Log lines of sixteen systems, made of templates with variables: text to search in."""

import random
from collections.abc import Iterable, Iterator

PARTS = {"train": range(3), "test": range(3, 7)}
"""Which outcomes of each system are trained on, and which results are reported on."""
# Name: how a line begins, what it is about, what becomes of it, and that in the words of another version.
SYSTEMS = {
    "sshd": (
        "sshd[{pid}]:",
        "password for {user} from {ip}|public key of {user}|session of {user}|connection {ip} port {port}|sftp {user}",
        "accepted|opened|refused: too many attempts|closed by peer|timed out before login|not allowed by policy|reset",
        "login granted|begins|denied after repeated tries|ended by remote side|gave no credentials in time|"
        "forbidden by configuration|dropped without notice",
    ),
    "web": (
        'web {ip} "{code}"',
        "GET {path}|POST {path}|upstream {host}:{port}|cache key {path}|TLS handshake with {ip}",
        "served in {ms} ms|queued|client went away|body too large|bad gateway|rate limited for {ms} ms|retried once",
        "done after {ms} ms|waits for a worker|aborted by browser|payload over limit|invalid reply from backend|"
        "slowed down, too many calls|sent a second time",
    ),
    "postgres": (
        "postgres[{pid}] {user}@{name}",
        'relation "{name}"|index "{name}_idx"|checkpoint {num}|autovacuum of "{name}"|transaction {num}',
        "complete, {num} buffers|waits for lock of {pid}|does not exist|deadlocked|rolled back|is corrupt|skipped",
        "finished, wrote {num} pages|blocked by process {pid}|is unknown|in a cycle of waits|undone|"
        "has a bad checksum|passed over",
    ),
    "kernel": (
        "kernel: [{num}.{ms}]",
        "eth{digit}|usb {digit}-{digit}|sd{letter}|process {name} ({pid})|cpu {digit}",
        "link up|reset by driver|out of memory|I/O error, sector {num}|throttled|stalled for {ms} ms|removed",
        "carrier detected|restarted by its module|allocation failed|unreadable at block {num}|slowed down by heat|"
        "makes no progress|unplugged",
    ),
    "kubelet": (
        "kubelet {host}",
        'pod "{name}-{hex}"|container "{name}"|image "{name}:{num}"|volume "{name}"|probe of "{name}"',
        "started|pulled in {ms} ms|evicted: disk pressure|backs off after crash|failed with {code}|killed|unmounted",
        "is running|downloaded from registry|moved off, node lacks space|restarts too often|unhealthy, status {code}|"
        "terminated by signal|detached",
    ),
    "mail": (
        "postfix/smtp[{pid}]: {hex}:",
        "to=<{user}@{host}>|from=<{user}@{host}>|relay {host}:{port}|queue {hex}|recipient {user}",
        "sent, {num} bytes|deferred, greylisted|bounced: no such mailbox|marked as spam|expired|is full|no greeting",
        "delivered|told to come back later|returned, user unknown|classified as junk|gave up after days|over quota|"
        "peer says nothing",
    ),
    "dns": (
        "named[{pid}]: client {ip}:",
        "query {host} A|zone {host}|transfer of {host}|update of {host}|cache for {host}",
        "answered in {ms} ms|NXDOMAIN|signature expired|denied|loaded, serial {num}|flushed|timed out at forwarder",
        "resolved|name unknown|DNSSEC record too old|refused by access list|read from file, version {num}|emptied|"
        "upstream server is silent",
    ),
    "backup": (
        "backup {name}:",
        "snapshot {hex}|archive {name}.{num}|file {path}|repository {host}|pack {hex}",
        "written|verified|checksum differs|unreadable, skipped|pruned by policy|locked by {pid}|uploaded, {num} MB",
        "stored on disk|integrity confirmed|content has changed|left out, permission denied|deleted, retention over|"
        "in use by process {pid}|copied to the cloud",
    ),
    "storage": (
        "dfs.DataNode {ip}:{port}",
        "block blk_{num}|replica of blk_{num}|pipeline {hex}|volume {path}|heartbeat to {host}",
        "received, {num}|under-replicated|corrupt at offset {num}|moved to {ip}|decommissioned|lost|late by {ms} ms",
        "stored, length {num}|has too few copies|damaged, byte {num}|transferred to {ip}|retired|"
        "cannot be found anywhere|overdue",
    ),
    "queue": (
        "broker [{num}]",
        "topic {name}-{digit}|consumer {name}/{hex}|partition {digit} of {name}|offset {num}|producer {hex}",
        "rebalanced|lags by {num}|elected leader {digit}|fenced|compacted|out of range|joined group {name}",
        "assigned anew|is {num} messages behind|chose replica {digit} as head|shut out, stale epoch|"
        "old keys thrown away|beyond the log|became a member of {name}",
    ),
    "routing": (
        "bgpd: neighbor {ip}",
        "prefix {ip}/{digit}|session AS{num}|route via {ip}|update of {num} paths|graceful restart",
        "established|withdrawn|hold timer expired|flapping, dampened|advertised|filtered|loops, dropped",
        "peers talk|no longer announced|neighbour silent too long|unstable, suppressed|announced to others|"
        "rejected by route map|own AS in path, ignored",
    ),
    "vpn": (
        "vpn {user}/{ip}:{port}",
        "tunnel tun{digit}|certificate of {user}|key renegotiation|route push {ip}|address pool {digit}",
        "ready|expired {num} days ago|revoked|exhausted|verify failed, depth {digit}|inactive, restarting|assigned",
        "is up|no longer valid|on the blacklist|has no free entry|chain of trust broken|no traffic, begins again|"
        "handed out",
    ),
    "printing": (
        "cupsd [job {num}]",
        "printer {name}|page {digit} of {num}|tray {digit}|filter {name}|document {hex} of {user}",
        "printed|paused|jammed|out of toner|cancelled by {user}|unsupported format|warming up, {ms} ms",
        "put on paper|held by operator|paper stuck|cartridge empty|withdrawn by {user}|unknown file type|heating",
    ),
    "java": (
        "[{name}-thread-{digit}] ERROR",
        "bean '{name}'|connection pool {name}|request {hex}|class {name}.{letter}{num}|heap region {num}",
        "created|exhausted after {ms} ms|NullPointerException at line {num}|not found|collected|interrupted|leaks",
        "instantiated|no free slot within {ms} ms|missing reference, line {num}|absent from classpath|"
        "freed by garbage collector|stopped while waiting|is never released",
    ),
    "ci": (
        "runner {hex} #{num}:",
        "step {name}|job {name}|artifact {name}.{num}|test {name}_{digit}|checkout of {hex}",
        "passed in {ms} ms|flaky, retried|failed with exit code {digit}|cancelled|restored|missing|quarantined",
        "green|unstable, run again|red, status {digit}|stopped by user|taken from cache|nowhere to be found|"
        "isolated, ignored for now",
    ),
    "payment": (
        "pay {hex} {user}:",
        "card *{num}|refund {num}|invoice {num}-{digit}|payout to {name}|webhook {path}",
        "authorised|declined: insufficient funds|flagged by risk|captured|disputed|duplicate of {hex}|settled, {num}",
        "approved by issuer|refused, balance too low|suspicious, under review|money collected|chargeback opened|"
        "seen before as {hex}|paid out, batch {num}",
    ),
}
TRAINED = tuple(SYSTEMS)[:8]
UNSEEN = tuple(SYSTEMS)[8:]
_NAMES = (
    "alpha",
    "orders",
    "web01",
    "metrics",
    "carol",
    "billing",
    "node7",
    "search",
    "dave",
    "ledger",
    "cron",
    "edge",
)
_FIELD_MAKERS = {
    "ip": lambda draw: ".".join(str(draw.randrange(1, 255)) for _ in range(4)),
    "port": lambda draw: str(draw.randrange(1024, 65536)),
    "pid": lambda draw: str(draw.randrange(300, 32768)),
    "num": lambda draw: str(draw.randrange(10, 100000)),
    "ms": lambda draw: str(draw.randrange(1, 5000)),
    "digit": lambda draw: str(draw.randrange(10)),
    "code": lambda draw: str(draw.choice((200, 204, 301, 403, 404, 500, 503))),
    "letter": lambda draw: draw.choice("abcdef"),
    "hex": lambda draw: f"{draw.randrange(1 << 24):06x}",
    "user": lambda draw: draw.choice(("root", "carol", "dave", "deploy", "erin", "backup", "guest", "mallory")),
    "name": lambda draw: draw.choice(_NAMES),
    "host": lambda draw: f"{draw.choice(_NAMES)}.example.{draw.choice(('com', 'net', 'org'))}",
    "path": lambda draw: f"/{draw.choice(_NAMES)}/{draw.choice(_NAMES)}.{draw.choice(('html', 'json', 'log', 'db'))}",
}


def templates(system: str, part: str) -> list[tuple[str, str]]:
    """A part of a system's templates, a subject and an outcome each, with fields in braces, as two versions say it."""
    start, subjects, *versions = (words.split("|") for words in SYSTEMS[system])
    return [
        (f"{start[0]} {subject} {versions[0][n]}", f"{start[0]} {subject} {versions[1][n]}")
        for subject in subjects
        for n in PARTS[part]
    ]


def session(draw: random.Random) -> dict[str, str]:
    """Values of every field. Lines that share them look alike, whatever they say."""
    return {name: make(draw) for name, make in _FIELD_MAKERS.items()}


def batches(count: int, size: int, seed: int) -> Iterator[list[tuple[str, str]]]:
    """Pairs of lines of one template in two sessions; ``size`` templates a batch, as many of each trained system.

    All firsts of a batch share a session and a version, as all seconds do, so that values tell nothing.
    """
    draw = random.Random(seed)
    for _ in range(count):
        chosen = [t for system in TRAINED for t in draw.sample(templates(system, "train"), size // len(TRAINED))]
        first, second = session(draw), session(draw)
        yield [(old.format(**first), new.format(**second)) for old, new in chosen]


def searches(systems: Iterable[str], part: str, count: int) -> Iterator[tuple[list[str], list[str]]]:
    """Lines of all templates of a part in two sessions, of two versions, in the same order: ``count`` times.

    A line of the first session is to find its own in the second, among all others of both.
    """
    draw = random.Random(0)
    chosen = [t for system in systems for t in templates(system, part)]
    for _ in range(count):
        first, second = session(draw), session(draw)
        yield [old.format(**first) for old, _ in chosen], [new.format(**second) for _, new in chosen]
