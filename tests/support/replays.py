"""Compare what replays hold, however it lies in their buffers."""

import hashlib

from qmix_lightning.replay.episode_replay import EpisodeReplay


def content_hash(replay: EpisodeReplay) -> str:
    """The SHA-256 over ids and contents in order; equal for equal stores whatever their layout."""
    digest = hashlib.sha256(f"{replay.first_id}:{replay.next_id}".encode())
    for i in range(replay.first_id, replay.next_id):
        one = replay.export(i, i + 1)
        flags = (bool(one[name]) for name in ("state_from_obs", "terminated", "truncated"))
        digest.update(f"{len(one['steps'])},{','.join(map(str, flags))};".encode())
        for part in ("steps", "obs", "state"):
            digest.update(one[part].numpy().tobytes())
    return digest.hexdigest()
