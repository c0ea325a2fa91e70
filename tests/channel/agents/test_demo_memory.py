import pytest

from channel.agents.demo_memory import recall


@pytest.mark.parametrize(
    ("told", "question", "answer"),
    [
        ("My name is Ada", "What is my name?", "Your name is Ada."),
        ("Hi, I'm Ada.", "who am I", "Your name is Ada."),
        ("Please call me Ada!", "What am I called?", "Your name is Ada."),
        ("I am called Ada", "Do you know my name?", "Your name is Ada."),
        ("My name's Ada", "Can you tell me what my name is?", "Your name is Ada."),
        ("my name is Ada and my cat is Tom", "Who is my cat?", "Your cat is Tom."),
        (
            "My favourite colour is blue.",
            "what's my favorite color",
            "Your favourite colour is blue.",
        ),
        ("My favourite colours are red and blue", "Which colours do I like?", "Your favourite colours are red and blue."),
        ("I live in Paris", "Where do I live?", "You live in Paris."),
        ("I'm 36 years old", "How old am I?", "You are 36 years old."),
        ("I like my garden", "what do I like", "You like your garden."),
        ("Remember that the code is 42.", "What is the code?", "You asked me to remember: the code is 42."),
        ("remember the number 42", "What number did I tell you?", "You asked me to remember: the number 42."),
        ("Don't forget my dog is Rex", "What is my dog called?", "Your dog is Rex."),
        ("My dog's name is Rex. My name is Ada.", "What is my dog's name?", "Your dog's name is Rex."),
        ("My dog\N{RIGHT SINGLE QUOTATION MARK}s name is Rex. My name is Ada.", "What is my name?", "Your name is Ada."),
    ],
)  # fmt: skip
def test_what_was_told_is_recalled(told: str, question: str, answer: str) -> None:
    assert recall([told, "Something else", question]) == [answer]


def test_the_latest_of_two_is_recalled() -> None:
    said = ["My favourite colour is blue", "Actually, my favourite colour is red. I like tea"]

    assert recall([*said, "What is my favourite colour?"]) == ["Your favourite colour is red."]


def test_two_questions_get_two_answers() -> None:
    said = ["I'm Ada and I live in Paris.", "What is my name and where do I live?"]

    assert recall(said) == ["Your name is Ada.", "You live in Paris."]


def test_the_same_text_may_tell_and_ask() -> None:
    assert recall(["My name is Ada. What is my name?"]) == ["Your name is Ada."]
    assert recall(["My name is Ada.\n What did I tell you?"]) == ["Your name is Ada."]


def test_everything_told_is_listed() -> None:
    assert recall(["My name is Ada", "Remember tea", "What did I tell you?"]) == [
        "Your name is Ada.",
        "You asked me to remember: tea.",
        "Before this you said: “My name is Ada”, “Remember tea”.",
    ]


def test_nothing_told_is_said_so() -> None:
    assert recall(["What did I tell you?"]) == ["You have not told me anything yet."]
    assert recall(["What is my name?"]) == [
        "You have not told me that yet, so I cannot answer “What is my name?”."
    ]


def test_something_new_is_acknowledged() -> None:
    assert recall(["My name is Ada"]) == ["I will remember that.", "Your name is Ada."]


@pytest.mark.parametrize(
    "text",
    ["", "Hello", "What is the capital of France?", "Is my bike here?", "Can you fly?", "I'm."],
)
def test_other_texts_are_not_about_memory(text: str) -> None:
    assert recall(["My name is Ada", text]) == []


def test_an_empty_conversation_recalls_nothing() -> None:
    assert recall([]) == []
