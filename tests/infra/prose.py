"""English of our own, from which turns with a given amount of text are cut."""

QUESTION = (
    "Our choir keeps its sheet music in a shared folder, and nobody can find anything after the "
    "summer break. What would be a sensible way to organise it without buying yet another tool?"
)

PARAGRAPHS = (
    (
        "Start with the way people search, not with the way people file. Most singers will remember "
        "roughly when they sang a piece and who conducted it, so let the file name carry both: the "
        "year first, then the season, then the composer and two or three words of the title."
    ),
    (
        "Keep one folder per season instead of a deep tree, because every extra level is one more "
        "place to look in vain. Old seasons can stay where they are; a search over file names finds "
        "them quickly enough, and nobody has to move hundreds of files on a Sunday evening."
    ),
    (
        "Next, agree on a short note at the top of each folder with the programme, the dates and the "
        "person who borrowed the parts. Ten lines are plenty. Somebody who was ill can skim it in a "
        "minute, and the librarian sees at a glance what still has to come back."
    ),
    (
        "Finally, choose one gardener for each season. The job is small: rename what is misnamed, "
        "merge duplicates and throw away blurred scans. Rules that nobody tends rot within weeks, "
        "while a tidy shelf invites everybody to put things back where they belong."
    ),
    (
        "Paper deserves the same care. Number the boxes, write the number into the file name, and "
        "store them upright in a dry cupboard away from the heating. Once a year, on a rainy "
        "afternoon, two people with a list can check the whole collection over a pot of tea."
    ),
    (
        "If recordings matter to you, treat them like scores: same naming, same folders, and a "
        "limit on their number. A rehearsal from March is rarely worth keeping in December, whereas "
        "the concert itself will be asked for again by proud grandparents for many years."
    ),
)


def question_and_answer(number: int, letters: int = 1024) -> tuple[str, str]:
    """Return the question and an answer, of so many letters together, another for each number."""
    first = number % len(PARAGRAPHS)
    answer = f"Point {number}. " + "\n\n".join(PARAGRAPHS[first:] + PARAGRAPHS[:first])
    return QUESTION, answer[: letters - len(QUESTION)]
