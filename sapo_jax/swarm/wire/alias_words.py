"""The words of node aliases, 64 of each kind. An alias changes if these do, so they never do."""

from __future__ import annotations

ADJECTIVES = tuple(
    """
    agile amber ample azure brave brief bright brisk calm candid civil clever cosmic crisp curious daring
    deft early eager fair fancy fleet fond frank free gentle glad golden grand happy hardy honest
    humble ideal jolly keen kind lively loyal lucid lucky mellow merry mighty modest nimble noble patient
    placid plucky polite proud quick quiet rapid ready royal silent snowy solid steady sunny tidy witty
    """.split()
)

ANIMALS = tuple(
    """
    badger beaver bison bobcat camel cheetah cougar crane curlew deer dingo dolphin eagle egret falcon ferret
    finch gannet gecko gibbon gopher hare heron hornet ibex iguana jackal jaguar kestrel koala lemur leopard
    lizard llama lynx magpie marmot marten meerkat mole moose narwhal ocelot osprey otter owl panda pelican
    petrel plover puffin puma quail rabbit raven robin salmon seal stork swift tapir toucan walrus wombat
    """.split()
)
