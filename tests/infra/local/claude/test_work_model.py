"""The queue against a model of its rules: any sequence of calls, any passing of time."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infra.local.claude.clock import ManualClock
from infra.local.claude.errors import ClaudeApiError
from infra.local.claude.knobs import Knobs
from infra.local.claude.work import OfflineWorkItem, OfflineWorkQueue, State

ENV = "env_1"
TTL = 10
SESSIONS = ("sesn_a", "sesn_b", "sesn_c")


class QueueMachine(RuleBasedStateMachine):
    """Keeps beside the queue: who reserved what and when, and every holder's last heartbeat."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.queue = OfflineWorkQueue(self.clock, Knobs(lease_ttl=TTL))
        self.items: list[OfflineWorkItem] = []
        self.reserved: dict[str, datetime] = {}
        self.beats: dict[str, tuple[str, datetime]] = {}
        self.ended: list[str] = []
        self.queue.on_end = lambda item: self.ended.append(item.id)

    @rule(session=st.sampled_from(SESSIONS))
    def enqueue_if_none_is_live(self, session: str) -> None:
        if self.queue.live_item_of(session) is None:
            self.items.append(self.queue.enqueue(ENV, "session", session))

    @rule(reclaim=st.sampled_from((0, 1000, 5000, 60000)))
    def poll(self, reclaim: int) -> None:
        expected = next((item for item in self.items if self._claimable(item, reclaim)), None)
        got = self.queue.claim(ENV, reclaim)
        assert got is expected
        if got is not None:
            assert got.state is State.QUEUED
            self.reserved[got.id] = self.clock.now()

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.items))
        before = self._state(item)
        self.queue.acknowledge(item)
        assert item.state is (State.STARTING if before is State.QUEUED else before)
        self.reserved.pop(item.id, None)

    @precondition(lambda self: self.items)
    @rule(data=st.data(), honest=st.booleans())
    def beat(self, data: st.DataObject, honest: bool) -> None:
        item = data.draw(st.sampled_from(self.items))
        state = self._state(item)
        known = self.beats.get(item.id)
        held = known[0] if known is not None and state is State.ACTIVE else "NO_HEARTBEAT"
        try:
            answer = self.queue.heartbeat(item, held if honest else "2020-01-01T00:00:00Z")
        except ClaudeApiError as refusal:
            assert refusal.status == 412
            assert state is State.QUEUED or (not honest and state in (State.STARTING, State.ACTIVE))
            return
        if state in (State.STOPPING, State.STOPPED):
            assert answer["lease_extended"] is False
            return
        assert honest and state in (State.STARTING, State.ACTIVE)
        assert answer["last_heartbeat"] != held
        self.beats[item.id] = (answer["last_heartbeat"], self.clock.now())
        assert item.state is State.ACTIVE

    @precondition(lambda self: self.items)
    @rule(data=st.data(), force=st.booleans())
    def stop(self, data: st.DataObject, force: bool) -> None:
        item = data.draw(st.sampled_from(self.items))
        before = self._state(item)
        self.queue.stop(item, force=force)
        if force or before in (State.QUEUED, State.STOPPED):
            assert item.state is State.STOPPED
        else:
            assert item.state is State.STOPPING

    @rule(seconds=st.sampled_from((0.5, 2.0, 6.0, 11.0)))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def a_session_has_at_most_one_live_item(self) -> None:
        live = [item.subject_id for item in self.queue.all_items() if item.state is not State.STOPPED]
        assert len(live) == len(set(live))

    @invariant()
    def an_active_item_has_beaten_within_its_lease(self) -> None:
        for item in self.queue.all_items():
            if item.state is State.ACTIVE:
                assert item.latest_heartbeat_at is not None
                assert self.clock.now() - item.latest_heartbeat_at < timedelta(seconds=TTL)
            if item.state is State.QUEUED:
                assert item.last_heartbeat is None and item.acknowledged_at is None

    @invariant()
    def every_end_is_told_exactly_once(self) -> None:
        stopped = [item.id for item in self.queue.all_items() if item.state is State.STOPPED]
        assert sorted(self.ended) == sorted(stopped)

    @invariant()
    def stats_agree_with_the_items(self) -> None:
        stats = self.queue.stats(ENV)
        queued = [item for item in self.items if item.state is State.QUEUED]
        assert stats["depth"] + stats["pending"] == len(queued)

    def _claimable(self, item: OfflineWorkItem, reclaim: int) -> bool:
        if self._state(item) is not State.QUEUED:
            return False
        since = self.reserved.get(item.id)
        return since is None or self.clock.now() - since > timedelta(milliseconds=reclaim)

    def _state(self, item: OfflineWorkItem) -> State:
        """The state as the queue sees it now, lapses taken; a lapsed lease also ends what the model knew."""
        self.queue.all_items()
        if item.state is State.QUEUED and item.id in self.beats:
            del self.beats[item.id]
            self.reserved.pop(item.id, None)
        return item.state


TestQueueModel = QueueMachine.TestCase
TestQueueModel.settings = settings(max_examples=60, stateful_step_count=40)
