"""The words that the definition of VQA accuracy spells alike: contractions, numbers, articles, punctuation.

The lists are those of the VQA evaluation (GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py), which the
EvalAI server, Pythia and LLaVA's m4c_evaluator share, as data. Answers are in lower case when words are looked up, so
the list's entries for "Im", "Ive" and "Id've" would never be met and are left out.
"""

from __future__ import annotations

_BARE = """
    aint arent cant couldve couldnt couldn'tve couldnt've didnt doesnt dont hadnt hadnt've hadn'tve hasnt
    havent hed hed've he'dve hes howd howll hows isnt itd itd've it'dve itll let's maam mightnt mightnt've
    mightn'tve mightve mustnt mustve neednt notve oclock oughtnt ow's'at 'ows'at 'ow'sat shant shed've she'dve
    she's shouldve shouldnt shouldnt've shouldn'tve somebody'd somebodyd've somebody'dve somebodyll somebodys
    someoned someoned've someone'dve someonell someones somethingd somethingd've something'dve somethingll
    thats thered thered've there'dve therere theres theyd theyd've they'dve theyll theyre theyve twas wasnt
    wed've we'dve weve werent whatll whatre whats whatve whens whered wheres whereve whod whod've who'dve
    wholl whos whove whyll whyre whys wont wouldve wouldnt wouldnt've wouldn'tve yall yall'll y'allll
    yall'd've y'alld've y'all'dve youd youd've you'dve youll youre youve
"""
_SPELLED = """
    ain't aren't can't could've couldn't couldn't've couldn't've didn't doesn't don't hadn't hadn't've
    hadn't've hasn't haven't he'd he'd've he'd've he's how'd how'll how's isn't it'd it'd've it'd've it'll
    let's ma'am mightn't mightn't've mightn't've might've mustn't must've needn't not've o'clock oughtn't
    'ow's'at 'ow's'at 'ow's'at shan't she'd've she'd've she's should've shouldn't shouldn't've shouldn't've
    somebodyd somebody'd've somebody'd've somebody'll somebody's someone'd someone'd've someone'd've
    someone'll someone's something'd something'd've something'd've something'll that's there'd there'd've
    there'd've there're there's they'd they'd've they'd've they'll they're they've 'twas wasn't we'd've
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
    who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've wouldn't've y'all
    y'all'll y'all'll y'all'd've y'all'd've y'all'd've you'd you'd've you'd've you'll you're you've
"""
CONTRACTIONS = dict(zip(_BARE.split(), _SPELLED.split(), strict=True))
"""What a word without its apostrophes becomes."""

_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED)}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
