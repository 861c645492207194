"""Which image the containers of a job get on a host, and what to do where it isn't there or doesn't fit."""

from difflib import get_close_matches

from images.build import with_tag
from images.recipes import builtin_recipes
from service.backends.engines import Engine, ImageFacts

SYSTEM_LABEL = "navarch.recipe"
"""On every image that has Navarch's sshd and entrypoint in it."""
_OWN = "navarch/"


def names_of(reference: str) -> tuple[str, ...]:
    """Under which names an image is looked for: a plain one may be a recipe's, whose image is `navarch/NAME`."""
    plain = not any(mark in reference for mark in "/:@")
    return (f"{_OWN}{reference}", reference) if plain else (reference,)


def find_image(engine: Engine, reference: str) -> ImageFacts | None:
    """The image as the host has it; None where it doesn't. Raises EngineError."""
    for name in names_of(reference):
        found = engine.image(name)
        if found is not None:
            return found
    return None


def same_image(reference: str, tag: str) -> bool:
    """Whether a build of `tag` makes what `reference` means."""
    return any(with_tag(name) == with_tag(tag) for name in names_of(reference))


def how_to_get(reference: str) -> str:
    """What to do about an image that isn't there."""
    recipes = builtin_recipes()
    for name, recipe in recipes.items():
        if same_image(reference, recipe.default_tag):
            return f"Build it: `navarch image build {name}`."
    near = get_close_matches(reference.removeprefix(_OWN), recipes, n=1)
    if near:
        return f"Did you mean {near[0]}? `navarch image build {near[0]}` builds it."
    return (
        f"Build it from a recipe (`navarch image build RECIPE --tag {reference}`), or load it on the host "
        "(`docker load`); `navarch image ls` lists what is there."
    )
