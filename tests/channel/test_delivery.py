"""Where a reply goes: the routing rules, case by case, without anything that is sent."""

import pytest

from channel.delivery import (
    MAX_ATTRIBUTES_BYTES,
    DeliveryReport,
    Linked,
    acknowledgement,
    delivery_id,
    require_small,
    route,
    token_of,
)
from channel.isolation import IsolationKeys
from channel.responses.protocol.errors import RequestError
from channel.targets import ChannelIdentity, ResponseTarget


PUSH = frozenset({"slack", "mail", "web"})
SLACK = ChannelIdentity("slack", "U1", {"team": "T"})
MAIL = ChannelIdentity("mail", "ann@example.com")
WEB = ChannelIdentity("web", "ann")
MUTE = ChannelIdentity("mute", "m")
ALL = Linked({"web": WEB, "slack": SLACK, "mail": MAIL, "mute": MUTE}, "slack")
NOBODY = Linked()

to = ResponseTarget
CASES = {
    "originating goes back": (to.originating, ALL, True, [], []),
    "none goes nowhere": (to.none, ALL, False, [], []),
    "active goes where its user was seen last": (to.active, ALL, False, [SLACK], []),
    "active of one who was never seen goes back": (to.active, NOBODY, True, [], []),
    "active of one who was last seen here goes back": (
        to.active,
        Linked({"web": WEB, "slack": SLACK}, "web"),
        True,
        [],
        [],
    ),
    "active in a channel that cannot push goes back": (
        to.active,
        Linked({"mute": MUTE}, "mute"),
        True,
        [],
        ["mute:m"],
    ),
    "active whose identity was unlinked goes back": (
        to.active,
        Linked({}, "slack"),
        True,
        [],
        ["slack"],
    ),
    "a channel by name goes to who is linked there": (to.channel("slack"), ALL, False, [SLACK], []),
    "a channel by name where nobody is linked is skipped, and goes back": (
        to.channel("slack"),
        NOBODY,
        True,
        [],
        ["slack"],
    ),
    "a channel with an id goes there word for word": (
        to.channel("slack:a:b"),
        NOBODY,
        False,
        [ChannelIdentity("slack", "a:b")],
        [],
    ),
    "an unknown channel is skipped, and goes back": (
        to.channel("nowhere:1"),
        ALL,
        True,
        [],
        ["nowhere:1"],
    ),
    "a channel that cannot push is skipped": (to.channel("mute"), ALL, True, [], ["mute:m"]),
    "the originating channel among others is included": (
        to.channels(["web", "slack"]),
        ALL,
        True,
        [SLACK],
        [],
    ),
    "the word originating among others is included": (
        to.channels(["originating", "slack"]),
        ALL,
        True,
        [SLACK],
        [],
    ),
    "one that is skipped does not bring the reply back where another gets it": (
        to.channels(["mute", "slack"]),
        ALL,
        False,
        [SLACK],
        ["mute:m"],
    ),
    "the same identity by two tokens is one": (
        to.channels(["slack", "slack:U1"]),
        ALL,
        False,
        [ChannelIdentity("slack", "U1")],
        [],
    ),
    "all linked are all, and its own entry includes the origin": (
        to.all_linked,
        ALL,
        True,
        [SLACK, MAIL],
        ["mute:m"],
    ),
    "all linked without an entry of its own excludes the origin": (
        to.all_linked,
        Linked({"slack": SLACK, "mail": MAIL}, "mail"),
        False,
        [SLACK, MAIL],
        [],
    ),
    "all linked of one who is not known goes back": (to.all_linked, NOBODY, True, [], []),
}


@pytest.mark.parametrize(
    ("target", "linked", "included", "pushes", "skipped"), CASES.values(), ids=CASES
)
def test_routing(
    target: ResponseTarget,
    linked: Linked,
    included: bool,
    pushes: list[ChannelIdentity],
    skipped: list[str],
) -> None:
    decided = route(target, origin="web", linked=linked, can_push=PUSH.__contains__)
    found = {token_of(identity) for identity in decided.pushes}
    assert decided.include_originating is included
    assert found == {token_of(identity) for identity in pushes}
    assert list(decided.skipped) == skipped


def test_an_identity_keeps_its_attributes_on_the_way_to_its_channel() -> None:
    decided = route(to.active, origin="web", linked=ALL, can_push=PUSH.__contains__)
    assert decided.pushes == (SLACK,)


def test_an_acknowledgement_names_where_the_reply_went() -> None:
    report = DeliveryReport(
        include_originating=False,
        pushed=("slack:U1", "mail"),
        failed=(("web:x", "OSError: a secret"), ("sms:1", "TimeoutError")),
        again=("sms:1",),
    )
    assert acknowledgement(report) == (
        "Delivered to slack:U1, mail. Not delivered yet to sms:1, but tried again. "
        "Not delivered to web:x."
    )
    assert acknowledgement(DeliveryReport(include_originating=False)) == (
        "The reply was not sent anywhere, as asked."
    )


def test_a_delivery_has_one_id_for_each_response_and_destination() -> None:
    ann, bob = IsolationKeys("ann"), IsolationKeys("bob")
    same = delivery_id(ann, "resp_1", "slack:U1")
    assert same == delivery_id(ann, "resp_1", "slack:U1")
    others = {
        delivery_id(ann, "resp_2", "slack:U1"),
        delivery_id(ann, "resp_1", "slack:U2"),
        delivery_id(bob, "resp_1", "slack:U1"),
        delivery_id(IsolationKeys("ann", "chat"), "resp_1", "slack:U1"),
    }
    assert len(others | {same}) == 5


@pytest.mark.parametrize(
    ("identity", "param"),
    [
        (ChannelIdentity("web", ""), "native_id"),
        (ChannelIdentity("web", "x" * 513), "native_id"),
        (ChannelIdentity("web", "a\nb"), "native_id"),
        (ChannelIdentity("web", "a", {"x": "y" * MAX_ATTRIBUTES_BYTES}), "attributes"),
    ],
)
def test_an_identity_that_is_too_large_is_a_400(identity: ChannelIdentity, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        require_small(identity)
    assert (refused.value.status, refused.value.param) == (400, param)
