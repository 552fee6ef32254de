"""Names for containers that were given none: a word for the weather at sea and somebody who found the way, `steady_harrison`. Pure."""

from __future__ import annotations

import random

_LEFT = (
    "able amber ardent bold brave breezy bright brisk calm clear clever coastal crisp daring deep eager early fair fearless fleet foamy "
    "free fresh gallant gentle glad golden grand happy hardy hasty honest humble jolly keen kind light lively loyal lucky merry mighty "
    "misty modest moonlit nimble noble patient plucky polite proud quick quiet rapid ready salty serene sharp silent silver sleek snug "
    "solid sound spry stately steady stormy stout strong sturdy sunny sure swift tidal tidy tireless trim true trusty upbeat vivid warm "
    "watchful wavy windy wise witty zesty"
).split()
_RIGHT = (
    "amundsen apgar babbage bartik bernoulli bohr boole bowditch brahe cannon carson cassini cook coriolis curie darwin dijkstra earhart "
    "einstein eriksson euler faraday fermi feynman fourier franklin frigg galileo gauss germain goeppert goodall grace hamilton "
    "harrison henson herschel hevelius hopper huygens hypatia ibnbattuta jemison johnson kepler knuth kovalevskaya lamarr leavitt leibniz "
    "leif linnaeus lovelace maury maxwell mcclintock meitner mendel mercator mitchell nansen neumann newton noether pascal pasteur payne "
    "polo ptolemy ramanujan ride ritchie rubin sacagawea shackleton shannon snorri somerville tereshkova tesla thompson torvalds turing "
    "vespucci wegener wu yonath zhenghe"
).split()


def random_name(attempt: int) -> str:
    """A fresh guess; from the second attempt on with a digit at its end, as Docker does when names run out."""
    name = f"{random.choice(_LEFT)}_{random.choice(_RIGHT)}"
    return f"{name}{random.randrange(10)}" if attempt else name
