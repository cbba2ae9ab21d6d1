"""Names of the registry's keys and channels.

All keys of a session share the hash tag ``{<id>}``: one slot, so that a script may touch them all.
"""

from __future__ import annotations

from typing import Final

from gateway.session import SessionId

#: Sorted set of session ids by the time of registration (ms).
INDEX: Final = "preview:index"
#: Channel on which every change of every session is published.
CHANGES: Final = "preview:changes"
#: Channels on which a push link hears whether it hears everything, each with a name of its own.
ECHOES: Final = "preview:echo:"
#: Sorted set of replica ids by the time of the last heartbeat (ms). This and the next keys are in
#: one slot, with the leases: in a cluster, whoever cannot renew a lease leaves no pulse either.
REPLICAS: Final = "preview:{replicas}"
#: Sorted set of owners (replica and incarnation) by the time at which their lease runs out (ms);
#: below 0: given up then.
OWNERS: Final = "preview:{replicas}:owners"
#: Hash: the time of the last heartbeat of anybody, and what follows from a long silence.
PULSE: Final = "preview:{replicas}:pulse"


def session_key(session_id: SessionId) -> str:
    """Hash: the session's record."""
    return f"preview:{{{session_id}}}:session"


def files_key(session_id: SessionId) -> str:
    """Hash: path to packed content (see ``contents``)."""
    return f"preview:{{{session_id}}}:files"


def events_key(session_id: SessionId) -> str:
    """Stream, and the channel on which its new entries are published."""
    return f"preview:{{{session_id}}}:events"


def session_keys(session_id: SessionId) -> tuple[str, str, str]:
    """The three keys, in the order in which the scripts expect them."""
    return session_key(session_id), files_key(session_id), events_key(session_id)


def memory_key(name: str) -> str:
    """String: what a call left behind for its repetition, expiring by itself."""
    return f"preview:memory:{{{name}}}"


def quota_key(account: str) -> str:
    """Hash: what the sessions of one account take up, and how fast it may make more."""
    return f"preview:quota:{{{account}}}"


def replica_key(replica_id: str) -> str:
    """String: the replica's lease, expiring by itself."""
    return f"preview:{{replicas}}:lease:{replica_id}"


def owner_key(owner: str) -> str:
    """Sorted set: ids of the sessions that this owner may hold, by the time of entry (ms).

    An id is entered before its record names the owner, and dropped some time after it no longer
    does: what the owner holds is always in it.
    """
    return f"preview:owner:{{{owner}}}:sessions"
