"""The words of `reading`: sentences and questions about territories, and paragraphs with questions."""

WRITTEN = {  # sentences that state a fact: of a territory, {v} is the value
    "currency": ("Prices are given in the {v}.", "People pay with the {v}."),
    "language": (
        "The official language is {v}.",
        "{v} is the language of the courts.",
    ),
    "share": (
        "About {v} percent of the people speak it.",
        "It is spoken by {v} percent of all who live there.",
    ),
    "minority": ("{v} is heard at home as well.", "A part of the people speaks {v}."),
    "code": (
        "On parcels its name is shortened to {v}.",
        "The two letters that stand for it are {v}.",
    ),
    "week": (
        "Calendars begin the week on a {v}.",
        "The first column of a calendar is {v}.",
    ),
    "weekend": ("Work stops on {v}.", "Most offices close when {v} comes."),
    "clock": ("Clocks follow those of {v}.", "The time is that of {v}."),
}
ASKED = {  # two known wordings and a new one, of a territory {t}
    "currency": (
        "What money is used in {t}?",
        "Which currency does {t} have?",
        "What do shops in {t} want to be paid in?",
    ),
    "language": (
        "Which language is official in {t}?",
        "What do judges in {t} speak?",
        "In which tongue are the laws of {t} written?",
    ),
    "share": (
        "How many percent speak the official language of {t}?",
        "What part of the people of {t} speaks the official language?",
        "How common is the official language of {t}?",
    ),
    "minority": (
        "Which other language is spoken in {t}?",
        "What else is spoken in the homes of {t}?",
        "What is the second language of {t}?",
    ),
    "code": (
        "What is the code of {t}?",
        "How is {t} abbreviated?",
        "What short form is used for {t}?",
    ),
    "week": (
        "On which day does the week begin in {t}?",
        "Which day comes first in calendars of {t}?",
        "What day starts the week in {t}?",
    ),
    "weekend": (
        "When does the weekend begin in {t}?",
        "On which day do offices in {t} close?",
        "From which day on do people rest in {t}?",
    ),
    "clock": (
        "Whose clocks are followed in {t}?",
        "Whose time is used in {t}?",
        "What is the time zone of {t}?",
    ),
}
# A title, a paragraph, and questions, each with the answers that count; none where there is none.
PARAGRAPHS = [
    (
        "Lighthouse",
        "Before it was lit by electricity, the lamp of a lighthouse burned oil. A keeper climbed the "
        "stairs every four hours to fill it and to wind the clockwork that turned the lens. Ships knew "
        "each tower by the rhythm of its flashes. Most towers have had no keeper since the 1990s.",
        [
            ("What did the lamp burn before electricity?", "oil"),
            ("How often did the keeper climb the stairs?", "every four hours"),
            ("What turned the lens?", "the clockwork", "clockwork"),
            (
                "How did ships tell one tower from another?",
                "by the rhythm of its flashes",
                "the rhythm of its flashes",
            ),
            ("Who paid the keeper?",),
        ],
    ),
    (
        "Honey bees",
        "A worker bee lives about six weeks in summer. For the first three she stays in the hive, where "
        "she cleans cells, feeds larvae and builds with wax. Only then does she fly out for nectar. When "
        "she finds a rich meadow she dances on the comb, and the angle of the dance tells the others the "
        "direction.",
        [
            (
                "How long does a worker bee live in summer?",
                "about six weeks",
                "six weeks",
            ),
            ("What does she build with?", "wax"),
            ("What does she fly out for?", "nectar"),
            ("What tells the other bees the direction?", "the angle of the dance"),
            ("How long does a queen live?",),
        ],
    ),
    (
        "Tides",
        "The Moon pulls on the water that faces it more strongly than on the Earth, and on the water of "
        "the far side less. Two bulges arise, and as the Earth turns, most coasts meet a high tide twice a "
        "day. When the Sun stands in line with the Moon the two pulls add up to a spring tide. At half "
        "moon they work against each other, and the tide is called neap.",
        [
            ("How often do most coasts meet a high tide?", "twice a day"),
            ("What is the tide at half moon called?", "neap"),
            (
                "When is there a spring tide?",
                "When the Sun stands in line with the Moon",
            ),
            ("How many bulges arise?", "Two"),
            ("How high is the highest tide in the world?",),
        ],
    ),
    (
        "Paper",
        "To make paper by hand, rags are beaten in water until only single fibres are left. A frame with a "
        "sieve of wire is dipped into the vat and lifted out level. The water runs off, and the fibres lie "
        "crosswise on the sieve. The sheet is turned onto a felt, pressed, and hung up to dry in the loft.",
        [
            ("What are rags beaten in?", "water"),
            ("What is the sieve made of?", "wire"),
            ("Where is the sheet hung up?", "in the loft", "the loft"),
            ("What is the sheet turned onto?", "a felt", "felt"),
            ("Which colour do the rags have?",),
        ],
    ),
    (
        "The violin",
        "A violin has four strings, tuned in fifths. The front is of spruce, because that wood is light and "
        "stiff, and the back is of maple. Inside, a small rod stands between the two plates; players call "
        "it the soul. If it falls over, the sound turns thin, and a maker has to set it upright again "
        "through the hole shaped like an f.",
        [
            ("How many strings does a violin have?", "four", "four strings"),
            ("Which wood is the back made of?", "maple"),
            ("What do players call the small rod?", "the soul", "soul"),
            (
                "Why is spruce taken for the front?",
                "because that wood is light and stiff",
                "that wood is light and stiff",
            ),
            ("What are the strings made of?",),
        ],
    ),
    (
        "A night train",
        "The night train leaves the harbour at ten past nine and reaches the mountains at dawn. It has six "
        "sleeping cars and a dining car, which is taken off at the border. Travellers with bicycles are "
        "asked to board at the rear. In January the line is closed for repairs, and buses run instead.",
        [
            ("When does the night train leave?", "ten past nine", "at ten past nine"),
            ("Which car is taken off at the border?", "a dining car", "dining car"),
            ("Where should travellers with bicycles board?", "at the rear", "the rear"),
            ("What runs in January?", "buses"),
            ("How much is a ticket?",),
        ],
    ),
    (
        "Sourdough",
        "Sourdough rises without yeast from a packet. Flour and water are left to stand for a week, and "
        "each day half is thrown away and fresh flour is added. Wild yeasts give the gas, and bacteria "
        "give the acid, which also keeps mould away. A starter that is fed once a week in the refrigerator "
        "can outlive the baker.",
        [
            ("What gives the gas?", "Wild yeasts"),
            ("What keeps mould away?", "the acid", "acid"),
            ("How long are flour and water left to stand?", "a week", "for a week"),
            ("How much is thrown away each day?", "half"),
            ("At which temperature is the bread baked?",),
        ],
    ),
    (
        "The canal",
        "The canal was dug in eleven years by four thousand workers. It joins the two rivers at their "
        "closest point and saves boats a journey of nine days. Seventeen locks lift them over the hill, "
        "and a lake at the top supplies the water. Today only pleasure boats pass, and the towpath is "
        "used by cyclists.",
        [
            (
                "How many workers dug the canal?",
                "four thousand",
                "four thousand workers",
            ),
            ("How many locks are there?", "Seventeen", "Seventeen locks"),
            ("What supplies the water?", "a lake at the top", "a lake"),
            ("Who uses the towpath today?", "cyclists"),
            ("Who planned the canal?",),
        ],
    ),
    (
        "Snow",
        "Snow crystals begin as tiny plates with six sides. Whether they grow into stars or into columns "
        "depends on the temperature and on how moist the air is. Near minus fifteen degrees stars with "
        "long arms appear, near minus five needles. Because a crystal falls through many layers of air, "
        "hardly any two are alike.",
        [
            ("How many sides do the tiny plates have?", "six", "six sides"),
            ("Which shape appears near minus five degrees?", "needles"),
            (
                "At which temperature do stars with long arms appear?",
                "minus fifteen degrees",
                "Near minus fifteen degrees",
            ),
            (
                "Why are hardly any two crystals alike?",
                "Because a crystal falls through many layers of air",
            ),
            ("How fast does a crystal fall?",),
        ],
    ),
]
