"""Directions in class names, however people write them."""

import pytest

from wsbcn_mm.engine.data.left_right import directed, mirror_labels


@pytest.mark.parametrize(
    'names',
    [
        ['turn_left', 'turn_right'],
        ['TurnLeft', 'TurnRight'],
        ['left-turn', 'right-turn'],
        ['moveLeft2', 'moveRight2'],
        ['LEFT_TURN', 'RIGHT_TURN'],
        ['turnleft', 'turnright'],
        ['LEFTturn', 'RIGHTturn'],
        ['left2right', 'right2left'],
        ['Swipe.Left', 'Swipe.Right'],
        ['drehung_left_ü', 'drehung_right_ü'],
        ['Turn Left', 'turn_right'],
        ['lefthand', 'RightHand'],
        ['upleft', 'upright'],
        ['Turning Hand Clockwise', 'Turning Hand Counterclockwise'],
        ['clockwise_turn', 'counter-clockwise_turn'],
        ['anticlockwise', 'Clockwise'],
    ],
)
def test_a_pair_however_it_is_spelled(names: list[str]) -> None:
    assert mirror_labels(names) == [1, 0]
    assert mirror_labels(['Opening', *names]) == [0, 2, 1]
    assert directed(['Opening', *names]) == names


@pytest.mark.parametrize(
    'name',
    [
        'upright',
        'brightly leftover',
        'Copyright',
        'pull_it_right_out',
        'PullItRightOut',
        'cleft',
        'Fall down',
        '左',
        '',
    ],
)
def test_words_without_a_direction(name: str) -> None:
    assert mirror_labels([name, 'x']) == [0, 1]
    assert directed([name]) == []


@pytest.mark.parametrize('name', ['turnleft', 'Waving left', 'leftwards', 'moveLeft2', 'rightout', 'turn clockwise'])
def test_a_direction_without_mirror_image(name: str) -> None:
    assert mirror_labels([name, 'x']) == [None, 1]
    assert directed([name, 'x']) == [name]


def test_two_spellings_of_one_name() -> None:
    assert mirror_labels(['turn_left', 'Turn left', 'turn_right', 'Turn right']) == [2, 3, 0, 1]
    # Which of the two is the mirror image of the third is not known.
    assert mirror_labels(['turn_left', 'turn-left', 'TurnRight']) == [None, None, None]
