"""What went wrong with the registry, in words that say what to do."""

from __future__ import annotations

import ssl
from typing import Final

from redis import exceptions

#: The first word of a server's answer, and what it means to an operator.
_ANSWERS: Final = {
    "CLUSTERDOWN": "the registry's cluster is down ({answer}): look at CLUSTER INFO on its nodes",
    "MASTERDOWN": "the registry is a replica that has lost its primary ({answer})",
    "MISCONF": "the registry cannot save its data and refuses writes ({answer})",
    "NOREPLICAS": "the registry's primary has too few replicas and refuses writes ({answer})",
    "NOPERM": "the registry's user may not do this ({answer}): docs/redis.md has the ACL rule",
    "OOM": "the registry is out of memory (OOM): raise its maxmemory or stop previews",
    "READONLY": "the registry is a read-only replica (READONLY): point the gateway at the primary; "
    "during a failover, wait",
}
_OTHER: Final = "the registry answered with an error ({answer})"
_CREDENTIALS: Final = (
    "the registry refuses the gateway's credentials ({answer}): check user and password in "
    "GATEWAY_REDIS_URL"
)


def explain(error: Exception, limit: float) -> str:
    """What went wrong, as the beginning of a sentence for an operator.

    ``limit`` is the time that the call had, in seconds.
    """
    # A refusal while connecting over a Unix socket comes wrapped in a ConnectionError.
    if isinstance(error.__cause__, exceptions.RedisError):
        error = error.__cause__
    answer = str(error)
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        return f"the registry did not answer within {limit:.1f} s"
    if isinstance(error, exceptions.BusyLoadingError):
        return "the registry is still loading its data (LOADING)"
    if isinstance(error, exceptions.AuthenticationError):
        return _CREDENTIALS.format(answer=answer)
    if isinstance(error, exceptions.InvalidResponse) or answer.startswith("Protocol error"):
        return f"what answers there is no Redis ({answer}): check host and port"
    if isinstance(error, exceptions.ResponseError):
        return _answered(error, answer)
    if isinstance(error, (exceptions.ConnectionError, OSError)):
        return _unreached(error, answer)
    return _OTHER.format(answer=answer)


def _answered(error: exceptions.ResponseError, answer: str) -> str:
    # redis-py takes the first word off where it has a class for it.
    word = getattr(error, "status_code", None) or answer.partition(" ")[0]
    return _ANSWERS.get(word, _OTHER).format(answer=answer)


def _unreached(error: Exception, answer: str) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the registry's certificate is not trusted ({cause.verify_message}): name its CA "
                "with ?ssl_ca_certs=/path/of/ca.pem in GATEWAY_REDIS_URL"
            )
        if isinstance(cause, ssl.SSLError):
            return (
                f"the registry does not speak TLS as asked ({answer}): rediss:// is for a TLS "
                "port, redis:// for a plain one"
            )
        cause = cause.__cause__ or cause.__context__
    return f"the registry cannot be reached ({answer})"
