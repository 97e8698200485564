"""Real language for real models: sentences in pairs that mean the same, and prose."""

from __future__ import annotations

PAIRS = [
    ("The train to the coast leaves at seven in the morning.", "At seven a.m. there is a train to the seaside."),
    ("My grandmother taught me how to bake bread.", "I learned to make bread from my grandma."),
    ("The committee rejected the proposal after a long debate.", "After much talk, the board turned the plan down."),
    ("Heavy rain flooded the streets of the old town.", "The historic centre was under water because of the downpour."),
    ("She repaired the bicycle with parts from the attic.", "The bike was fixed by her using pieces found upstairs."),
    ("Honey never spoils if it is kept sealed.", "A closed jar of honey stays good forever."),
    ("The orchestra rehearsed the symphony twice.", "Twice the musicians practised the symphony."),
    ("Prices for electricity rose sharply this winter.", "This winter power became a lot more expensive."),
    ("A fox crossed the garden and vanished behind the shed.", "Behind the hut went the fox that ran through it."),
    ("The doctor told him to rest for two weeks.", "He was ordered by his physician to take a fortnight off."),
    ("How do I reset the password of my account?", "I forgot my login password; how can I change it?"),
    ("The telescope showed the rings of Saturn clearly.", "Saturn's rings were easy to see through the telescope."),
]  # fmt: skip
"""Two sentences each: the one's nearest neighbour among all others is the other."""

PROSE = (
    "The baker opened his shop before sunrise, as he had done every day for thirty years. The smell of fresh bread "
    "filled the narrow street, and by six o'clock the first customers were waiting at the door. Most of them he knew "
    "by name. He asked about their children and their work, and he always added a small roll to the bag without "
    "saying a word about it. When people asked him why he gave so much away, he would smile and say that a town is "
    "only as warm as its bread.",
    "Water boils at a lower temperature on a mountain than at the sea, because the air above it presses down less. "
    "This is why potatoes take longer to cook in a hut high in the Alps, although the water in the pot is bubbling "
    "just as hard. A pressure cooker does the opposite: its lid keeps the steam inside, the pressure rises, and the "
    "water can become much hotter before it turns into steam.",
    "When the storm had passed, we walked down to the harbour to see what was left of the boats. Two of them had been "
    "thrown against the wall and lay on their sides like sleeping animals. The fishermen stood in a small group, "
    "their hands in their pockets, and said very little. Then one of them laughed, pointed at the old red boat that "
    "everyone had called a wreck for years, and we saw that it was still floating.",
)
"""Three paragraphs, about a hundred tokens each."""

PRIMER = (
    "A library is more than a building full of books. It is a place where a child can ask any question and where "
    "nobody has to buy anything in order to stay. In many towns the library also lends tools, seeds and musical "
    "instruments.",
    "Bees tell each other where to find flowers by dancing. The angle of the dance shows the direction, and its "
    "length shows how far away the flowers are. A bee that has watched the dance can fly straight to the place.",
    "The first railway carriages looked like coaches, because the people who built them had built coaches all their "
    "lives. It took twenty years until somebody thought of a corridor that ran through the whole train.",
    "To make a simple soup, fry an onion in a little butter, add two carrots and a potato, and cover everything with "
    "water. After half an hour it is soft enough to be crushed with a fork. Salt and pepper come last.",
    "In the evening the wind died down and the lake became as smooth as a mirror. We rowed slowly along the shore, "
    "and nobody spoke. From far away came the sound of a bell, and then it was quiet again.",
    "Every map tells a lie, because the earth is round and paper is flat. Some maps keep the shapes of the countries, "
    "others keep their sizes, and no map can keep both at the same time.",
    "He had forgotten his umbrella, so he waited under the roof of the station until the rain stopped. A woman with a "
    "small dog stood beside him, and after a while they began to talk about the weather.",
    "Glass is made of sand, soda and lime, melted together at more than a thousand degrees. While it is hot it can be "
    "blown, pressed or drawn into threads that are thinner than a hair.",
)
"""Other prose, for passes that read texts before they choose or round: eight short paragraphs."""
