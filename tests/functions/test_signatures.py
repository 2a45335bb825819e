"""What a process remembers of deliveries: bounded, and no longer than one can come again."""

from __future__ import annotations

from functions.signatures import STALE_SECONDS, SeenWebhooks


class SignatureClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_id_is_known_for_as_long_as_its_signature_could_be_right() -> None:
    clock = SignatureClock()
    seen = SeenWebhooks(clock)
    assert seen.is_new("a") and not seen.is_new("a")
    clock.now = 2 * STALE_SECONDS - 1
    assert not seen.is_new("a")
    clock.now = 2 * STALE_SECONDS
    assert seen.is_new("a")


def test_of_very_many_ids_the_oldest_are_forgotten_first() -> None:
    seen = SeenWebhooks(most=100)
    assert all(seen.is_new(str(number)) for number in range(1_000))
    assert not any(seen.is_new(str(number)) for number in range(900, 1_000))
    assert seen.is_new("0")


def test_a_delivery_that_could_not_be_acted_on_counts_again() -> None:
    seen = SeenWebhooks()
    assert seen.is_new("a")
    seen.forget("a")
    assert seen.is_new("a")
    seen.forget("never seen")
