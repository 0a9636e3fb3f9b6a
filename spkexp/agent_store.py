"""What the processes of a launch have from the agent (torchrun's or `spkexp.agent`) that started them."""

import os
import time
from datetime import timedelta

import torch.distributed as dist


def agent_store(timeout: timedelta) -> dist.Store | None:
    """The store of the agent that started this process; it outlives the processes. None without one."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=timeout)


def agree_on_attempt(store: dist.Store, own: int, size: int, timeout: timedelta) -> int:
    """The number of this attempt, the same in every process: 0, and one more each time that all are started again.

    gloo finds its peers through keys in the agent's store, where those of dead processes are still: each attempt needs
    names of its own. The agents' restart counts do not serve, for an agent whose processes are alive when another's die
    does not count that restart. So the main process draws a number, and hands it out only to processes that answer:
    each asks under a name that it alone has, so that a question which the dead left does no harm.
    """
    if own != 0:
        question = os.urandom(16).hex()
        store.set(f"question/{own}", question)
        number = int(store.get(f"answer/{question}"))
        store.set(f"thanks/{number}/{own}", "")
        return number
    number = store.add("attempts", 1) - 1
    waiting = set(range(1, size))
    end = time.monotonic() + timeout.total_seconds()
    while waiting:
        for other in sorted(waiting):
            if store.check([f"thanks/{number}/{other}"]):
                waiting.remove(other)
            elif store.check([f"question/{other}"]):
                store.set(f"answer/{store.get(f'question/{other}').decode()}", str(number))
        if time.monotonic() > end:
            raise RuntimeError(f"ranks {sorted(waiting)} did not join within {timeout}")
        time.sleep(0.01)
    return number
